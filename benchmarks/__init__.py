"""Programs that measure speed, each as ratios against a peer or a limit in the same run."""
