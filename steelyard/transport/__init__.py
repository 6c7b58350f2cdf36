"""The tensor plane: one seam, `base.TensorPlane`, and an implementation per module; and the sockets under them."""
