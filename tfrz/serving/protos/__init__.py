"""Configuration messages that `tensorflow-serving-api` leaves out; see `make protos`."""
