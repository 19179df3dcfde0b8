//! Weight files: GGUF and safetensors, memory-mapped and checked before use.
