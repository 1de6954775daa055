"""Model families behind one decoding protocol."""
