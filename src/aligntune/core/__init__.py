"""The core: configuration, backends, trainers and the factory."""
