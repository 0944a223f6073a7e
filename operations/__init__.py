"""What operators set and see: settings, logs, the check, metrics, health and the status page."""
