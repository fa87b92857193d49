"""The algorithm, pure: values in, decisions out; no clock, no input or output, no logging."""
