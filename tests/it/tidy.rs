//! What the repository promises about its own shape.
