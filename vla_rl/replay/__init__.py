"""The replay ring in shared memory and its sampling."""
