"""Pictures of learning curves and grids."""
