"""Studies: the rate law, two runs side by side, the main job. Starts doors as processes and reads run folders."""
