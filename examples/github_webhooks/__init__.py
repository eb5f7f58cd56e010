"""The main job on real input: GitHub webhook deliveries, three services, processes that are killed on the way."""
