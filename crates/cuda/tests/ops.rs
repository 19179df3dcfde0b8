//! Every operation on a GPU against the scalar reference, where there is a GPU.

use std::sync::Arc;

use ferrum_cuda::CudaBackend;
use ferrum_kernels::{Backend, testkit};

#[test]
fn every_operation() {
    match CudaBackend::new(0) {
        Ok(backend) => testkit::assert_all(&(Arc::new(backend) as Arc<dyn Backend>), ""),
        Err(reason) => println!("not tested on a GPU: {reason}"),
    }
}
