"""Tests of this server alone, its launcher, and the gallery of broken servers."""
