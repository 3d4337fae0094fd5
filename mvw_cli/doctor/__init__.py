"""What `mvw doctor` checks: the installation, a profile's model, and engine against oracle."""
