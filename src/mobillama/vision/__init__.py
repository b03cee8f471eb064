"""Models that see: images and conversations about them, towers, and LLaVA around a shared-FFN model."""
