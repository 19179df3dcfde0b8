//! The JSON of headers and indexes, with what serde leaves open closed: duplicate keys and unbounded lists.

use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasher;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::files::table::MAX_TENSORS;

/// The header of one file.
pub(super) struct Header {
    pub(super) metadata: UniqueMap<String>,
    pub(super) tensors: HashMap<String, Entry>,
}

/// One tensor in the header.
#[derive(serde::Deserialize)]
pub(super) struct Entry {
    pub(super) dtype: String,
    pub(super) shape: Shape,
    /// First byte and the one after the last, from the start of the data.
    pub(super) data_offsets: (usize, usize),
}

/// The index of a sharded checkpoint: which shard holds which tensor.
#[derive(serde::Deserialize)]
pub(super) struct Index {
    pub(super) weight_map: UniqueMap<String>,
}

/// At most [`MAX_DIMS`] dimensions.
pub(super) struct Shape(pub(super) Vec<usize>);

/// A JSON object that must not name a key twice, of at most [`MAX_TENSORS`] keys.
pub(super) struct UniqueMap<V>(pub(super) HashMap<String, V>);

const MAX_DIMS: usize = 8;

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut metadata = None;
                let mut tensors = HashMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if key != "__metadata__" {
                        let entry = map.next_value()?;
                        insert(&mut tensors, key, entry)?;
                    } else if metadata.replace(map.next_value()?).is_some() {
                        return Err(A::Error::custom("`__metadata__` stands twice"));
                    }
                }
                Ok(Header { metadata: metadata.unwrap_or(UniqueMap(HashMap::new())), tensors })
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MapVisitor<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for MapVisitor<V> {
            type Value = UniqueMap<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut out = HashMap::new();
                while let Some((key, value)) = map.next_entry()? {
                    insert(&mut out, key, value)?;
                }
                Ok(UniqueMap(out))
            }
        }
        deserializer.deserialize_map(MapVisitor(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShapeVisitor;
        impl<'de> Visitor<'de> for ShapeVisitor {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a shape of at most {MAX_DIMS} dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut dims = Vec::new();
                while let Some(dim) = seq.next_element()? {
                    if dims.len() == MAX_DIMS {
                        return Err(A::Error::invalid_length(MAX_DIMS + 1, &self));
                    }
                    dims.push(dim);
                }
                Ok(Shape(dims))
            }
        }
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

fn insert<V, S: BuildHasher, E: Error>(map: &mut HashMap<String, V, S>, key: String, value: V) -> Result<(), E> {
    if map.len() == MAX_TENSORS {
        return Err(E::custom(format_args!("more than {MAX_TENSORS} keys in an object")));
    }
    if map.contains_key(&key) {
        return Err(E::custom(format_args!("key {key:?} stands twice")));
    }
    map.insert(key, value);
    Ok(())
}
