"""Pictures of results: each file draws some, `catalogue` lists them all."""
