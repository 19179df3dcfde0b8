//! From named tensors to layers: every tensor is asked for by name and shape, and every tensor must be asked for.
//!
//! A model is built twice: first against an [`Inventory`] that only writes down what is wanted, which finds all missing,
//! left-over and misshapen tensors before anything is loaded (and is all that planning needs), then against the file.

use std::{cell::RefCell, collections::BTreeMap, sync::Arc};

use ferrum_kernels::{Backend, DType, PreparedWeight, Tensor, Weight, quant};

use crate::{
    Error, Result,
    files::{FileError, TensorView},
    gguf_names,
};

/// Where tensors come from, by the names and row-major shapes that the checkpoint uses.
pub trait TensorSource {
    /// # Errors
    /// When the tensor is not there or cannot be computed with.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorView, FileError>;
}

/// Builds layers for one backend.
pub struct Loader<'a> {
    backend: &'a dyn Backend,
    names: Names,
    from: From<'a>,
}

/// Which names the checkpoint uses. Models always ask by the Hugging Face name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    HuggingFace,
    /// With the architecture name, because a few tensors are called differently by architecture
    Gguf(String),
}

enum From<'a> {
    Inventory(&'a Inventory),
    Source(&'a dyn TensorSource),
}

/// The tensors a model asks for: name in the checkpoint → shape.
#[derive(Debug, Default)]
pub struct Inventory {
    wanted: RefCell<BTreeMap<String, Vec<usize>>>,
}

impl Inventory {
    /// Name and shape of everything that was asked for.
    pub fn into_wanted(self) -> BTreeMap<String, Vec<usize>> {
        self.wanted.into_inner()
    }
}

impl<'a> Loader<'a> {
    /// Writes down what the model wants; the layers it builds cannot run.
    pub fn inventory(backend: &'a dyn Backend, names: Names, inventory: &'a Inventory) -> Self {
        Self { backend, names, from: From::Inventory(inventory) }
    }

    /// Loads for real.
    pub fn new(backend: &'a dyn Backend, names: Names, source: &'a dyn TensorSource) -> Self {
        Self { backend, names, from: From::Source(source) }
    }

    pub fn backend(&self) -> &dyn Backend {
        self.backend
    }

    /// Whether the tensors follow the conventions of GGUF files, which permute and shift a few of them.
    pub fn is_gguf(&self) -> bool {
        matches!(self.names, Names::Gguf(_))
    }

    /// The matrix of stacked tensors, each `(name without ".weight", rows)`.
    ///
    /// # Errors
    /// When a tensor is missing, misshapen or in a dtype the backend cannot read.
    pub fn matrix(&self, parts: &[(String, usize)], cols: usize) -> Result<PreparedWeight> {
        let mut stacked: Option<Weight> = None;
        for (name, rows) in parts {
            let part = self.weight(&format!("{name}.weight"), [*rows, cols])?;
            stacked = Some(match stacked {
                None => part,
                Some(above) => above.stack(part)?,
            });
        }
        let weight = stacked.ok_or_else(|| Error::MissingTensors { names: vec!["a matrix of no parts".into()] })?;
        match self.from {
            From::Inventory(_) => Ok(PreparedWeight::new(&weight, 0, Arc::new(()))),
            From::Source(_) => Ok(self.backend.prepare(weight)?),
        }
    }

    /// The vectors `name`, one after the other, in F32.
    ///
    /// # Errors
    /// When a tensor is missing, misshapen or not a weight dtype.
    pub fn vector(&self, parts: &[(String, usize)]) -> Result<Tensor> {
        let values = self.values(parts)?;
        Ok(self.backend.tensor_f32(&[values.len()], &values)?)
    }

    /// As [`Loader::vector`], plus `offset` on each value: some families store norm weights as their distance from 1.
    /// GGUF files hold the sum already.
    ///
    /// # Errors
    /// As [`Loader::vector`].
    pub fn norm(&self, name: &str, len: usize, offset: f32) -> Result<Tensor> {
        let offset = if self.is_gguf() { 0.0 } else { offset };
        let mut values = self.values(&[(format!("{name}.weight"), len)])?;
        values.iter_mut().for_each(|v| *v += offset);
        Ok(self.backend.tensor_f32(&[len], &values)?)
    }

    /// The values of small tensors, one after the other.
    ///
    /// # Errors
    /// As [`Loader::vector`].
    pub fn values(&self, parts: &[(String, usize)]) -> Result<Vec<f32>> {
        let mut values = vec![0.0; parts.iter().map(|p| p.1).sum()];
        let mut rest = &mut values[..];
        for (name, len) in parts {
            let (head, tail) = rest.split_at_mut(*len);
            rest = tail;
            if let Some(view) = self.view(name, &[*len])? {
                quant::dequantize(view.dtype, view.bytes.as_slice(), head)
                    .map_err(|e| ferrum_kernels::Error::Weight { name: view.name, reason: e.to_string() })?;
            }
        }
        Ok(values)
    }

    fn weight(&self, name: &str, shape: [usize; 2]) -> Result<Weight> {
        match self.view(name, &shape)? {
            Some(view) => Ok(Weight::new(view.name, view.dtype, shape, view.bytes)?),
            None => {
                let part =
                    ferrum_kernels::WeightPart { dtype: DType::F32, rows: shape[0], data: ferrum_kernels::HostBytes::from_vec(Vec::new()) };
                Ok(Weight { name: name.to_owned(), cols: shape[1], parts: vec![part] })
            }
        }
    }

    /// The tensor, or `None` when this is an inventory.
    fn view(&self, name: &str, shape: &[usize]) -> Result<Option<TensorView>> {
        let name = match &self.names {
            Names::HuggingFace => name.to_owned(),
            Names::Gguf(architecture) => gguf_names::from_hugging_face(architecture, name),
        };
        match self.from {
            From::Inventory(inventory) => {
                inventory.wanted.borrow_mut().insert(name, shape.to_vec());
                Ok(None)
            }
            From::Source(source) => {
                let view = source.tensor(&name, shape)?;
                if view.shape != shape {
                    return Err(Error::TensorShape { name, expected: shape.to_vec(), got: view.shape });
                }
                Ok(Some(view))
            }
        }
    }
}
