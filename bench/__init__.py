"""The benchmark (`tox run -e bench`) and the siege (`tox run -e siege`): how fast the server is, what it withstands.

Both start the server as it is deployed, and drive it from another process. If they can, they put the server into a box:
cgroups that make this machine as small as the one that the server is deployed on.
"""
