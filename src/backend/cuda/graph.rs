//! A CUDA graph: a stream's work, captured once and replayed with one call.

use std::sync::Arc;

use cudarc::driver::{CudaGraph, sys};

use super::error::{CudaError, Naming};
use super::pinned::PinnedMemory;
use super::stream::Stream;

/// A graph captured by [`Stream::capture`](super::Stream::capture).
///
/// It holds the addresses of the device buffers that it uses, not the buffers: nothing keeps them alive, and they must
/// live, and stay where they are, as long as it is replayed. Their values are those of the time of the replay.
/// Page-locked host memory ([`Pinned`](super::Pinned)) that it copies to or from it does keep.
///
/// One thread at a time may use it: the driver does not lock graphs.
pub struct Graph {
    graph: CudaGraph,
    stream: Stream,
    /// What its copies read or write on the host, each once. Dropped after the graph.
    pinned: Vec<Arc<PinnedMemory>>,
}

// SAFETY: the driver's graphs belong to no thread; that one thread at a time uses it follows from its not being `Sync`.
unsafe impl Send for Graph {}

impl Graph {
    pub(super) fn new(graph: CudaGraph, stream: Stream, mut pinned: Vec<Arc<PinnedMemory>>) -> Graph {
        pinned.sort_by_key(Arc::as_ptr);
        pinned.dedup_by_key(|memory| Arc::as_ptr(memory));
        Graph { graph, stream, pinned }
    }

    /// Uploads the graph to the device ahead of its first replay.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn upload(&self) -> Result<(), CudaError> {
        self.graph.upload().named("cuGraphUpload")
    }

    /// How many dependencies there are between its nodes, and how many of them are programmatic: of a kernel that may
    /// start before the kernel ahead has ended.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn edges(&self) -> Result<(usize, usize), CudaError> {
        let graph = self.graph.cu_graph();
        let mut count = 0;
        // SAFETY: the graph is not changed by anyone; without places for the edges their number is asked for.
        unsafe {
            let none = std::ptr::null_mut;
            sys::cuGraphGetEdges_v2(graph, none(), none(), std::ptr::null_mut(), &raw mut count)
        }
        .result()
        .named("cuGraphGetEdges")?;
        let mut nodes = [vec![std::ptr::null_mut(); count], vec![std::ptr::null_mut(); count]];
        // SAFETY: a C structure of numbers: all zeros are valid.
        let mut edges: Vec<sys::CUgraphEdgeData> = vec![unsafe { std::mem::zeroed() }; count];
        let [from, to] = &mut nodes;
        // SAFETY: each array has room for as many edges as the count says.
        unsafe {
            sys::cuGraphGetEdges_v2(graph, from.as_mut_ptr(), to.as_mut_ptr(), edges.as_mut_ptr(), &raw mut count)
        }
        .result()
        .named("cuGraphGetEdges")?;
        let programmatic = sys::CUgraphDependencyType::CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC as u8;
        Ok((count, edges.iter().take(count).filter(|edge| edge.type_ == programmatic).count()))
    }

    /// Replays it on the stream that it was recorded on. Whoever then touches [`Pinned`](super::Pinned) memory that it
    /// copies to or from waits for this replay to end; a slice of it that is held now would meet the copy half-way.
    ///
    /// # Errors
    /// [`CudaError::Driver`], [`CudaError::WorkFailed`]; [`CudaError::KernelFailed`] where launches are waited for
    /// ([`Device::is_synchronous`](super::Device::is_synchronous)).
    pub fn launch(&self) -> Result<(), CudaError> {
        let stream = self.stream.inner();
        for memory in &self.pinned {
            memory.before_copy(stream)?;
        }
        let launched = self.graph.launch().named("cuGraphLaunch");
        for memory in &self.pinned {
            memory.after_copy(stream)?;
        }
        launched?;
        self.stream.wait_where_synchronous(|| "a kernel of a CUDA graph".to_owned())
    }
}
