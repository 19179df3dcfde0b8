//! The compiled kernels, one fatbin per file of `kernels/`, inside the program.

/// The loader reads headers in place, so they must lie as they would in a file of their own.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

macro_rules! embed {
    ($path:literal) => {{
        static FATBIN: &Aligned<[u8]> = &Aligned(*include_bytes!($path));
        &FATBIN.0
    }};
}

/// (stem of the source file, fatbin)
static FATBINS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// The fatbin of `kernels/STEM.cu`, unless the program was built without its architecture.
pub fn fatbin(stem: &str) -> Option<&'static [u8]> {
    FATBINS.iter().find(|(name, _)| *name == stem).map(|(_, fatbin)| *fatbin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_is_compiled() {
        for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels")).unwrap() {
            let path = entry.unwrap().path();
            let stem = path.file_stem().unwrap().to_str().unwrap();
            let expected = path.extension().is_some_and(|e| e == "cu") && !stem.starts_with("sm90_");
            if expected {
                let fatbin = fatbin(stem).unwrap_or_else(|| panic!("{stem} is not embedded"));
                // The magic number of a fatbin, little-endian.
                assert_eq!(fatbin[..4], 0xBA55_ED50u32.to_le_bytes(), "{stem}");
                assert_eq!(fatbin.as_ptr() as usize % 64, 0);
            }
        }
    }
}
