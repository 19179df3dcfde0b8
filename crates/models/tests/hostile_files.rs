//! Files made to break the reader. Each must give an `Err` that names what is wrong; none may panic.

use std::path::Path;

use ferrum_kernels::{DType, HostBytes};
use ferrum_models::files::gguf::{GgufWriter, MetaValue, StrArray, Value, ValueType};
use ferrum_models::files::{FileError, Gguf, MappedFile, SafeTensors, WeightFile, mmap};
use proptest::prelude::*;

fn parse(bytes: &[u8]) -> Result<Gguf, FileError> {
    let gguf = Gguf::parse(MappedFile::from_vec("hostile.gguf", bytes.to_vec()))?;
    touch(&gguf);
    let meta = gguf.metadata();
    for key in meta.keys() {
        let _ = format!("{:?}", meta.value(key));
        let _ = (meta.opt::<u32>(key), meta.opt::<&str>(key), meta.opt::<Vec<f32>>(key));
        if let Ok(Some(strings)) = meta.opt::<StrArray>(key) {
            assert_eq!(strings.iter().count(), strings.len());
        }
    }
    Ok(gguf)
}

fn parse_safetensors(bytes: &[u8]) -> Result<SafeTensors, FileError> {
    let file = SafeTensors::parse(MappedFile::from_vec("hostile.safetensors", bytes.to_vec()))?;
    touch(&file);
    Ok(file)
}

/// Reads every byte of every tensor.
fn touch(file: &impl WeightFile) {
    for name in file.names() {
        if let Ok(tensor) = file.tensor(name) {
            std::hint::black_box(tensor.bytes.iter().map(|&b| u64::from(b)).sum::<u64>());
        }
    }
}

/// Fails unless the file was refused with a message that names the file and contains `about`.
#[track_caller]
fn assert_refused<T>(result: Result<T, FileError>, about: &str) {
    let text = result.err().expect("the file must be refused").to_string();
    assert!(text.contains("hostile") && text.contains(about), "{text:?} does not mention {about:?}");
}

/// A sound file that ends with its last tensor, whose bytes are a multiple of the alignment.
fn tiny() -> Vec<u8> {
    let mut w = GgufWriter::new();
    w.set("general.architecture", "llama").unwrap();
    w.set("llama.block_count", 2u32).unwrap();
    w.set("tokenizer.ggml.tokens", vec!["<s>", "", "a"]).unwrap();
    w.set("tokenizer.ggml.scores", vec![0.5f32, -1.0, f32::NAN]).unwrap();
    w.set("flags", vec![true, false]).unwrap();
    let inner = MetaValue::from(vec![1i32, 2]);
    w.set("nested", MetaValue::Array(ValueType::Array, vec![inner.clone(), inner])).unwrap();
    w.tensor("a", &[3, 2], DType::F32, HostBytes::from_vec((0..24).collect())).unwrap();
    w.tensor("b", &[2, 32], DType::Q8_0, HostBytes::from_vec(vec![7; 68])).unwrap();
    w.tensor("c", &[8], DType::F32, HostBytes::from_vec(vec![9; 32])).unwrap();
    w.to_vec().unwrap()
}

/// A GGUF file put together by hand.
struct Raw(Vec<u8>);

impl Raw {
    fn header(tensors: u64, keys: u64) -> Self {
        Self::versioned(3, tensors, keys)
    }

    fn versioned(version: u32, tensors: u64, keys: u64) -> Self {
        Raw(b"GGUF".to_vec()).u32(version).u64(tensors).u64(keys)
    }

    fn u32(mut self, n: u32) -> Self {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn u64(mut self, n: u64) -> Self {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn str(self, s: &[u8]) -> Self {
        let mut out = self.u64(s.len() as u64);
        out.0.extend(s);
        out
    }

    fn tensor(self, name: &str, dims: &[u64], type_id: u32, offset: u64) -> Self {
        let head = self.str(name.as_bytes()).u32(dims.len() as u32);
        dims.iter().fold(head, |r, &d| r.u64(d)).u32(type_id).u64(offset)
    }

    fn data(mut self, len: usize) -> Self {
        let aligned = self.0.len().next_multiple_of(32);
        self.0.resize(aligned + len, 1);
        self
    }
}

/// One tensor `t` before 64 bytes of data.
fn one_tensor(dims: &[u64], type_id: u32, offset: u64) -> Vec<u8> {
    Raw::header(1, 0).tensor("t", dims, type_id, offset).data(64).0
}

#[test]
fn the_sound_file_is_read() {
    let gguf = parse(&tiny()).unwrap();
    let a = gguf.tensor("a").unwrap();
    assert_eq!((a.shape, a.dtype, a.bytes.to_vec()), (vec![3, 2], DType::F32, (0..24).collect()));
    let meta = gguf.metadata();
    let tokens = meta.get_str_array("tokenizer.ggml.tokens").unwrap();
    assert_eq!(tokens.iter().collect::<Vec<_>>(), [b"<s>".as_slice(), b"", b"a"]);
    assert_eq!((tokens.get(2), tokens.get(3)), (Some(b"a".as_slice()), None));
    assert_eq!(meta.get_u32("llama.block_count").unwrap(), 2);
    assert_eq!(meta.get::<Vec<bool>>("flags").unwrap(), [true, false]);
    assert!(meta.get_f32_array("tokenizer.ggml.scores").unwrap()[2].is_nan());
    let Some(Value::Array(outer)) = meta.value("nested") else { panic!("`nested` is an array") };
    let sums: Vec<i64> = outer
        .values()
        .map(|v| match v {
            Value::Array(inner) => inner.values().map(|n| if let Value::Int(n) = n { n } else { 0 }).sum(),
            _ => 0,
        })
        .collect();
    assert_eq!(sums, [3, 3]);
    assert!(parse(&one_tensor(&[4], 0, 0)).is_ok());
}

#[test]
fn every_truncation_is_refused() {
    let bytes = tiny();
    for len in 0..bytes.len() {
        assert_refused(parse(&bytes[..len]), "");
    }
    let bytes = safetensors(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8);
    for len in 0..bytes.len() {
        assert_refused(parse_safetensors(&bytes[..len]), "");
    }
}

#[test]
fn formats_we_do_not_read() {
    assert_refused(parse(b"GGML\0\0\0\0"), "not a GGUF file");
    assert_refused(parse(&Raw::versioned(1, 0, 0).0), "version 1");
    assert_refused(parse(&Raw::versioned(3u32.swap_bytes(), 0, 0).0), "big-endian");
    assert_refused(parse(&Raw::versioned(4, 0, 0).0), "version 4");
    assert!(parse(&Raw::versioned(2, 0, 0).0).is_ok());
}

// Counts and sizes.
#[test]
fn counts_and_sizes_that_overflow() {
    for n in [1, 1 << 20, u32::MAX.into(), 1 << 60, u64::MAX] {
        assert_refused(parse(&Raw::header(n, 0).0), "tensor count");
        assert_refused(parse(&Raw::header(0, n).0), "metadata count");
        assert_refused(parse(&Raw::header(0, 1).u64(n).data(64).0), "metadata key");
        assert_refused(parse(&Raw::header(1, 0).u64(n << 8 | 1 << 50).data(64).0), "tensor name");
    }
    // Products that wrap to something small.
    for dims in [&[1 << 32, 1 << 32][..], &[u64::MAX], &[1 << 62, 4], &[3, u64::MAX / 2, 7, 9], &[1 << 40, 1 << 20]] {
        assert_refused(parse(&one_tensor(dims, 0, 0)), "tensor `t`");
    }
    for offset in [u64::MAX, u64::MAX - 31, u64::MAX - 3, 1 << 63] {
        assert_refused(parse(&one_tensor(&[4], 0, offset)), "tensor `t`");
    }
    assert_refused(parse(&one_tensor(&[33], 2, 0)), "whole Q4_0 blocks");
    // As many elements as two blocks, in rows of half a block.
    assert_refused(parse(&one_tensor(&[16, 4], 2, 0)), "whole Q4_0 blocks");
}

// Zeros and limits.
#[test]
fn zeros_and_limits() {
    assert_refused(parse(&one_tensor(&[4, 0], 0, 0)), "zero");
    assert_refused(parse(&one_tensor(&[0], 0, 0)), "zero");
    assert_refused(parse(&one_tensor(&[1; 5], 0, 0)), "5 dimensions");
    assert_refused(parse(&Raw::header(1, 0).str(b"t").u32(u32::MAX).data(64).0), "dimensions");
    for alignment in [0, 3, 48, 1 << 17, 1 << 31, u32::MAX] {
        assert_refused(parse(&Raw::header(0, 1).str(b"general.alignment").u32(4).u32(alignment).0), "alignment");
    }
    assert_refused(parse(&Raw::header(0, 1).str(b"general.alignment").u32(8).str(b"32").0), "alignment is a string");
    assert_refused(parse(&one_tensor(&[4], 0, 8)), "multiple of the alignment");
    for type_id in [4, 5, 42, u32::MAX] {
        assert_refused(parse(&one_tensor(&[4], type_id, 0)), "tensor type");
    }
}

// Strings, arrays and their types.
#[test]
fn strings_and_arrays() {
    let value = |kind: u32| Raw::header(0, 1).str(b"key").u32(kind);
    for len in [1, 1 << 40, u64::MAX - 7, u64::MAX] {
        assert_refused(parse(&value(8).u64(len).0), "`key`");
        for element in 0..=12 {
            assert_refused(parse(&value(9).u32(element).u64(len).0), "`key`");
        }
    }
    assert_refused(parse(&value(13).u64(0).0), "value type 13");
    assert_refused(parse(&value(9).u32(77).u64(0).0), "value type 77");
    assert_refused(parse(&value(7).u32(2).0), "bool");
    let deep = (0..100_000).fold(value(9), |r, _| r.u32(9).u64(1));
    assert_refused(parse(&deep.0), "nested");
    assert_refused(parse(&Raw::header(0, 1).str(b"").u32(0).data(8).0), "name of 0 bytes");
    assert_refused(parse(&Raw::header(0, 1).str(b"\xff").u32(0).data(8).0), "UTF-8");
    assert_refused(parse(&Raw::header(0, 2).str(b"k").u32(4).u32(1).str(b"k").u32(4).u32(1).0), "second value");
}

#[test]
fn values_of_another_type() {
    let gguf = parse(&tiny()).unwrap();
    let meta = gguf.metadata();
    assert_refused(meta.get_f32_array("tokenizer.ggml.tokens"), "array of string");
    assert_refused(meta.get_str_array("tokenizer.ggml.scores"), "array of f32");
    assert_refused(meta.get_u32("general.architecture"), "`general.architecture` is string");
    assert_refused(meta.get_str("llama.block_count"), "u32 2");
    assert_refused(meta.get_u32("no.such.key"), "`no.such.key` is missing");
    assert!(meta.opt::<u32>("no.such.key").unwrap().is_none());

    let mut w = GgufWriter::new();
    w.set("negative", -1i32).unwrap();
    w.set("large", u64::MAX).unwrap();
    w.set("bytes", MetaValue::Str(vec![0xff])).unwrap();
    let gguf = parse(&w.to_vec().unwrap()).unwrap();
    let meta = gguf.metadata();
    assert_refused(meta.get_u32("negative"), "i32 -1");
    assert_refused(meta.get_u32("large"), "u64 18446744073709551615");
    assert_refused(meta.get_str("bytes"), "not UTF-8");
    assert_eq!(meta.get::<u64>("large").unwrap(), u64::MAX);
}

// Tensor data that is not there, or that two tensors share.
#[test]
fn tensor_data_outside_of_the_file() {
    assert_refused(parse(&one_tensor(&[17], 0, 0)), "past the end");
    assert_refused(parse(&one_tensor(&[4], 0, 64)), "past the end");
    let overlapping = Raw::header(2, 0).tensor("a", &[9], 0, 0).tensor("b", &[8], 0, 32).data(64);
    assert_refused(parse(&overlapping.0), "overlaps");
    let twice = Raw::header(2, 0).tensor("a", &[8], 0, 0).tensor("a", &[8], 0, 32).data(64);
    assert_refused(parse(&twice.0), "second tensor");
}

#[test]
fn a_type_we_cannot_compute_is_named() {
    let mxfp4 = parse(&one_tensor(&[32], 39, 0)).unwrap();
    assert_refused(mxfp4.tensor("t"), "`t` has type MXFP4");
    let fp8 = safetensors(r#"{"w":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}}"#, 8);
    assert_refused(parse_safetensors(&fp8).unwrap().tensor("w"), "`w` has type F8_E4M3");
    assert_refused(mxfp4.tensor("u"), "no tensor `u`");
}

// A file that shrinks while it is mapped.
#[cfg(unix)]
#[test]
fn a_file_that_shrinks_under_the_map() {
    let dir = tempfile::Builder::new().prefix("hostile").tempdir().unwrap();
    let path = dir.path().join("shrinks.bin");
    std::fs::write(&path, vec![7u8; 1 << 20]).unwrap();
    let file = MappedFile::open(&path).unwrap();
    let view = file.slice(1 << 19..1 << 20).unwrap();
    let untouched = MappedFile::open(&path).unwrap();
    file.check().unwrap();
    assert_eq!(view.lost(), None);
    let faults = mmap::fault_count();

    let set_len = |len| std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len).unwrap();
    set_len(5000);
    assert_refused(untouched.check(), "1048576 bytes mapped, 5000 now");

    // Would end the process with SIGBUS; from several threads at once, as kernels read.
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| assert!(view.iter().all(|&b| b == 0)));
        }
    });
    assert!(mmap::fault_count() > faults);
    assert_eq!(view.lost(), Some(path.as_path()), "a backend that reads weights from the mapping asks this after each product");
    assert_eq!(file.bytes()[0], 7);

    // Growing back does not bring back what was mapped.
    set_len(1 << 20);
    assert_refused(file.check(), "shrank");
    untouched.check().unwrap();
}

// A SIGBUS outside of our mappings still ends the process: the handler must not hide the faults of others.
#[cfg(target_os = "linux")]
#[test]
fn foreign_faults_still_end_the_process() {
    use std::os::unix::process::ExitStatusExt;
    const CHILD: &str = "--ignored --exact raise_sigbus --nocapture";
    let child = std::process::Command::new(std::env::current_exe().unwrap()).args(CHILD.split(' ')).output().unwrap();
    assert_eq!(child.status.signal(), Some(7), "{}", String::from_utf8_lossy(&child.stdout));
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "ends its process; run by foreign_faults_still_end_the_process"]
fn raise_sigbus() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mapped.bin");
    std::fs::write(&path, [1; 10]).unwrap();
    let _installs_the_handler = MappedFile::open(&path).unwrap();
    // A fault as the kernel reports it, but at no address of ours; sent twice because the first resets the action.
    for _ in 0..2 {
        let pid = std::process::id().to_string();
        std::process::Command::new("sh").args(["-c", "kill -BUS $0", &pid]).status().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

#[test]
fn paths_that_are_no_files() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(MappedFile::open(dir.path()), Err(FileError::NotAFile { .. })));
    assert!(matches!(MappedFile::open(dir.path().join("none")), Err(FileError::Io { .. })));
    std::fs::write(dir.path().join("empty.gguf"), []).unwrap();
    assert!(matches!(Gguf::open(dir.path().join("empty.gguf")), Err(FileError::Malformed { .. })));
}

/// A file with this header and `data_len` bytes of data.
fn safetensors(header: &str, data_len: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend(vec![1; data_len]);
    out
}

#[test]
fn safetensors_headers() {
    let entry = |shape: &str, begin: u64, end: u64| format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}"#);
    let one = |shape: &str, begin, end| format!(r#"{{"t":{}}}"#, entry(shape, begin, end));
    let two = |a: String, b: String| format!(r#"{{"a":{a},"b":{b}}}"#);
    assert!(parse_safetensors(&safetensors(&one("[2]", 0, 8), 8)).is_ok());
    assert!(parse_safetensors(&safetensors("{}", 0)).is_ok());

    for length in [u64::MAX, 1 << 63, 1 << 40, 3] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(b"{}");
        assert_refused(parse_safetensors(&bytes), "header length");
    }
    for (header, len, about) in [
        (one("[2]", 8, 0), 8, "reversed"),
        (one("[2]", 0, 8), 4, "behind"),
        (one("[3]", 0, 8), 8, "takes 12 bytes"),
        (one("[18446744073709551615,8]", 0, 8), 8, "shape"),
        (one("[4294967296,4294967296,0]", 0, 0), 0, "shape"),
        (one("[-1]", 0, 8), 8, "invalid value"),
        (one("[1,1,1,1,1,1,1,1,2]", 0, 8), 8, "at most 8 dimensions"),
        (two(entry("[2]", 0, 8), entry("[2]", 4, 12)), 12, "overlaps"),
        (two(entry("[2]", 0, 8), entry("[2]", 12, 20)), 20, "gap"),
        (one("[2]", 4, 12), 12, "gap"),
        (one("[2]", 0, 8), 9, "belong to no tensor"),
        (format!(r#"{{"a":{0},"a":{0}}}"#, entry("[2]", 0, 8)), 8, "twice"),
        (format!(r#"{{"":{}}}"#, entry("[2]", 0, 8)), 8, "name of 0 bytes"),
        (r#"{"t":{"dtype":"F7","shape":[2],"data_offsets":[0,8]}}"#.into(), 8, "F7"),
        (r#"{"t":{"dtype":"F32","shape":[2]}}"#.into(), 8, "data_offsets"),
        (r#"{"__metadata__":{"a":1}}"#.into(), 0, "string"),
        ("[".repeat(100_000), 0, "header"),
        (format!(r#"{{"t":{}"#, r#"{"x":"#.repeat(100_000)), 0, "header"),
        ("{\"\u{0}".into(), 0, "header"),
    ] {
        assert_refused(parse_safetensors(&safetensors(&header, len)), about);
    }
    // Allowed by the format, and useless.
    let empty = parse_safetensors(&safetensors(&one("[0,4]", 0, 0), 0)).unwrap();
    assert_refused(empty.tensor("t"), "no elements");
}

#[test]
fn safetensors_indexes() {
    let dir = tempfile::Builder::new().prefix("hostile").tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
    let tensor = |name: &str| safetensors(&format!(r#"{{"{name}":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}}}"#), 4);
    put("one.safetensors", &tensor("a"));
    put("two.safetensors", &tensor("b"));
    put("again.safetensors", &tensor("a"));
    let open = |map: &str| {
        put("model.safetensors.index.json", format!(r#"{{"metadata":{{}},"weight_map":{map}}}"#).as_bytes());
        SafeTensors::open(dir.path())
    };
    let sound = open(r#"{"a":"one.safetensors","b":"two.safetensors"}"#).unwrap();
    assert_eq!(sound.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(sound.tensor("b").unwrap().bytes.len(), 4);

    assert_refused(open(r#"{"a":"three.safetensors"}"#), "three.safetensors");
    assert_refused(open(r#"{"a":"two.safetensors","b":"one.safetensors"}"#), ".safetensors and not in");
    assert_refused(open(r#"{"a":"one.safetensors","c":"two.safetensors"}"#), "tensor `c`");
    assert_refused(open(r#"{"a":"one.safetensors","b":"again.safetensors"}"#), "second tensor");
    assert_refused(open(r#"{"a":"one.safetensors","a":"two.safetensors"}"#), "twice");
    assert_refused(open("{}"), "0 shards");
    let many: Vec<String> = (0..600).map(|i| format!(r#""{i}":"{i}.safetensors""#)).collect();
    assert_refused(open(&format!("{{{}}}", many.join(","))), "600 shards");
    for path in ["../one", "/etc/x", "./one", "sub/one", "sub//one", "a\\\\b", "c:x", "one.safetensors/.", "x\\u0000"] {
        assert_refused(open(&format!(r#"{{"a":"{path}.safetensors"}}"#)), "plain name");
    }
    for path in ["..", "", "one", "one.safetensors/", "one.safetensors/.."] {
        assert_refused(open(&format!(r#"{{"a":"{path}"}}"#)), "plain name");
    }
    put("model.safetensors.index.json", b"{\"weight_map\":[[[");
    assert_refused(SafeTensors::open(dir.path()), "index");
}

#[test]
fn split_models() {
    let dir = tempfile::Builder::new().prefix("hostile").tempdir().unwrap();
    let put = |path: &Path, number: u16, count: u16, total: i32, tensor: &str| {
        let mut w = GgufWriter::new();
        w.set("split.no", MetaValue::U16(number)).unwrap();
        w.set("split.count", MetaValue::U16(count)).unwrap();
        w.set("split.tensors.count", total).unwrap();
        w.tensor(tensor, &[8], DType::F32, HostBytes::from_vec(vec![number as u8; 32])).unwrap();
        std::fs::write(path, w.to_vec().unwrap()).unwrap();
    };
    let part = |i: u32| dir.path().join(format!("m-{i:05}-of-00002.gguf"));
    put(&part(1), 0, 2, 2, "a");
    assert_refused(Gguf::open(part(1)), "m-00002-of-00002.gguf");
    put(&part(2), 1, 2, 2, "b");
    for i in 1..=2 {
        let gguf = Gguf::open(part(i)).unwrap();
        assert_eq!(gguf.tensor("b").unwrap().bytes.to_vec(), [1; 32]);
        assert_eq!(gguf.names().collect::<Vec<_>>(), ["a", "b"]);
    }
    put(&part(2), 1, 2, 2, "a");
    assert_refused(Gguf::open(part(1)), "second tensor");
    put(&part(2), 0, 2, 2, "b");
    assert_refused(Gguf::open(part(1)), "its metadata part 1 of 2");
    put(&part(1), 0, 2, 9, "a");
    put(&part(2), 1, 2, 9, "b");
    assert_refused(Gguf::open(part(1)), "says 9");
    let other = dir.path().join("other.gguf");
    put(&other, 0, 2, 2, "a");
    assert_refused(Gguf::open(&other), "whose name must end");
    put(&other, 0, 60_000, 2, "a");
    assert_refused(Gguf::open(&other), "60000 parts");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bytes_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let (mut gguf, mut tensors) = (tiny(), safetensors(header, 8));
        for (at, value) in &flips {
            let (i, j) = (at.index(gguf.len()), at.index(tensors.len()));
            (gguf[i], tensors[j]) = (*value, *value);
        }
        let _ = (parse(&gguf), parse_safetensors(&tensors));
    }

    #[test]
    fn replaced_fields_never_panic(at in any::<prop::sample::Index>(), value in any::<u64>(), shift in 0..64u32) {
        let mut bytes = tiny();
        let at = at.index(bytes.len() - 8);
        bytes[at..at + 8].copy_from_slice(&(value >> shift).to_le_bytes());
        let _ = parse(&bytes);
    }

    #[test]
    fn what_is_written_is_read(
        tokens in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..50),
        rows in 1..5usize,
        n in any::<i64>(),
    ) {
        let mut w = GgufWriter::new();
        w.set("general.alignment", 64u32).unwrap();
        w.set("tokens", MetaValue::Array(ValueType::String, tokens.iter().cloned().map(MetaValue::Str).collect())).unwrap();
        w.set("n", n).unwrap();
        let data: Vec<u8> = (0..rows * 36).map(|i| i as u8).collect();
        w.tensor("t", &[rows, 64], DType::Q4_0, HostBytes::from_vec(data.clone())).unwrap();
        w.tensor("u", &[3], DType::F16, HostBytes::from_vec(vec![1; 6])).unwrap();
        let gguf = parse(&w.to_vec().unwrap()).unwrap();
        let read: Vec<Vec<u8>> = gguf.metadata().get_str_array("tokens").unwrap().iter().map(<[u8]>::to_vec).collect();
        prop_assert_eq!(read, tokens);
        prop_assert_eq!(gguf.metadata().get::<i64>("n").unwrap(), n);
        let t = gguf.tensor("t").unwrap();
        prop_assert_eq!((t.shape, t.bytes.to_vec()), (vec![rows, 64], data));
        prop_assert_eq!(gguf.table().info("t").unwrap().offset % 64, 0);
    }
}
