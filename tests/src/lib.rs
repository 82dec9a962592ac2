//! netreeve's proofs: namespaces, guests and peers as a library.
