"""Usage of the fleet, from reports that are noise each: `reports` takes them, `estimate` says what they add up to."""
