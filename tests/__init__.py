"""Tests beyond the two scripts at the top level."""
