"""What pytest loads for these tests; it stands in modules, so that the server's own tests have it, too."""

pytest_plugins = ["plugin", "harness"]
