//! Any bytes as a safetensors file: an error or a checkpoint whose tensors can all be read.
#![no_main]

use ferrum_models::files::{MappedFile, SafeTensors, WeightFile};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    check(data.to_vec());
    // The same bytes as a header, with its length and 64 bytes of tensor data around it.
    let mut file = (data.len() as u64).to_le_bytes().to_vec();
    file.extend(data);
    file.extend([0; 64]);
    check(file);
});

fn check(bytes: Vec<u8>) {
    let total = bytes.len();
    match SafeTensors::parse(MappedFile::from_vec("fuzz.safetensors", bytes)) {
        Ok(file) => {
            let mut used = 0;
            for info in file.table().infos() {
                used += info.len_bytes;
                if let Ok(tensor) = file.tensor(&info.name) {
                    assert_eq!(tensor.dtype.bytes(tensor.shape.iter().product()), Some(tensor.bytes.len()));
                }
            }
            assert!(used <= total);
        }
        Err(error) => assert!(error.to_string().contains("fuzz.safetensors")),
    }
}
