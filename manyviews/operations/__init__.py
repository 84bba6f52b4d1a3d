"""What people do around a build: check before, watch during, look at and export what came out."""
