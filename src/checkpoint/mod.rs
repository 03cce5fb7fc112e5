//! A Hugging Face checkpoint directory: config.json and safetensors over a memory map, checked, never copied.
