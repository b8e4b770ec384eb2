"""Everything that touches torch: models on the meta device, and what real devices hold."""
