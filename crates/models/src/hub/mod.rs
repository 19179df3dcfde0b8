//! Where models come from: aliases, the Hugging Face hub and its cache, Python packages, local paths.
