"""Operations around a build: check before it, watch it, and inspect or export its store."""
