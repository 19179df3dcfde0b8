//! Any bytes as a GGUF file: an error or a model whose metadata and tensors can all be read.
#![no_main]

use ferrum_models::files::gguf::{StrArray, Value};
use ferrum_models::files::{Gguf, MappedFile, WeightFile};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let gguf = match Gguf::parse(MappedFile::from_vec("fuzz.gguf", data.to_vec())) {
        Ok(gguf) => gguf,
        Err(error) => {
            assert!(error.to_string().contains("fuzz.gguf"));
            return;
        }
    };
    let meta = gguf.metadata();
    for key in meta.keys() {
        let value = meta.value(key).expect("a key that is listed has a value");
        read(value, 0);
        let _ = (meta.get_u32(key), meta.get_f32(key), meta.get_str(key), meta.get_bool(key), meta.get_f32_array(key), meta.raw(key));
        if let Ok(strings) = meta.get::<StrArray>(key) {
            assert!(strings.iter().map(<[u8]>::len).sum::<usize>() <= data.len());
        }
    }
    for name in gguf.names() {
        if let Ok(tensor) = gguf.tensor(name) {
            assert_eq!(tensor.dtype.bytes(tensor.shape.iter().product()), Some(tensor.bytes.len()));
        }
    }
});

fn read(value: Value<'_>, depth: usize) {
    assert!(depth <= 4);
    if let Value::Array(array) = value {
        assert_eq!(array.values().map(|v| read(v, depth + 1)).count(), array.len());
    }
}
