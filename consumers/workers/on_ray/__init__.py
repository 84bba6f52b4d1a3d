"""Workers that Ray places on the machines of a cluster, and starts again if they are killed."""
