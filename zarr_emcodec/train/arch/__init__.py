"""One file per network family; each says what it computes, where it starts and what a voxel costs."""
