//! What the network is: shapes, norms, rope, window, and how many bytes and FLOPs a token costs.
