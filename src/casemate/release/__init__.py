"""The release machine: builds, gates, signs and publishes what devices will run. Never imports the device's code."""
