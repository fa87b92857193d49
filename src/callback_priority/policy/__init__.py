"""The configuration: parsed, validated, all problems at once."""
