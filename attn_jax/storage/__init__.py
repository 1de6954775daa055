"""What lies on the disk: atomic files, SHA-256 manifests, the model folder. Knows no model and no trainer."""
