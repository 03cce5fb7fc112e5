//! From mapped checkpoint files to device memory.
//!
//! The destination is cut into equal pieces. Reader threads make one piece each at a time, in pinned memory, straight
//! from the mapping: rows are copied, converted, permuted and padded in that one pass, and no heap copy of any tensor
//! exists. Pieces that are made travel by asynchronous copies on a stream of their own while the next are being made;
//! each reader has two buffers, so that it never waits for the copy of the piece it has just made.
//!
//! With as many readers as it takes, the slowest of these bounds the time: the link to the device, the memory that
//! pages are read from and pieces written to, or the disk where pages are not in memory yet.
//!
//! The driver could also read the mapping itself (`cuMemHostRegister` with its flag for read-only memory, on systems
//! where `CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED` says so), which would save the copy of tensors that
//! need neither conversion nor permutation. Registering locks every page first, so it may as well be slower; it is left
//! until it can be measured.

use std::any::Any;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SendError, Sender, TryRecvError};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use bytemuck::Pod;

use super::buffer::Buffer;
use super::error::CudaError;
use super::layout::{ALIGNMENT_BYTES, Layout, Part, Region};
use super::pack::{Packer, Source, packer};
use super::pinned::Pinned;
use super::stream::Stream;
use crate::backend::{BackendError, LoadProgress, LoadStage};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::host::Size;

/// Buffers of one reader: one that it fills, one that is being copied.
const BUFFERS: usize = 2;
/// How often progress is reported, about.
const TICK: Duration = Duration::from_millis(100);

/// Why weights did not reach the device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UploadError {
    /// The checkpoint: a tensor that is missing or misshapen, or holds a value that the device's dtype cannot.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The device; its memory above all.
    #[error("{0}")]
    Cuda(#[from] CudaError),
    /// Random weights of a tensor that several matrices share.
    #[error("random weights cannot be made of tensor {tensor}, of which a matrix has some rows only")]
    PartOfTensor {
        /// Its name.
        tensor: String,
    },
    /// Weights in a format that there is no packer for.
    #[error("tensor {tensor}: the GPU cannot keep weights in its format")]
    NoPacker {
        /// The name of the first tensor of its matrix.
        tensor: String,
    },
    /// A reader thread panicked; a bug.
    #[error("a thread that reads weights failed: {reason}")]
    Reader {
        /// The panic's message.
        reason: String,
    },
    /// The operating system gave no thread.
    #[error("no thread to read weights with: {source}")]
    Thread {
        /// The system's answer.
        source: std::io::Error,
    },
}

impl From<UploadError> for BackendError {
    fn from(error: UploadError) -> BackendError {
        match error {
            UploadError::Checkpoint(error) => error.into(),
            UploadError::Cuda(CudaError::OutOfMemory { needed, free, total }) => BackendError::OutOfMemory {
                needed,
                what: "the weights on the GPU".to_owned(),
                advice: format!(
                    "{} of its {} are free: use a smaller model, or the device cpu",
                    Size(free),
                    Size(total)
                ),
            },
            other => BackendError::Unavailable(other.to_string()),
        }
    }
}

/// The pinned memory and the threads of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    /// Bytes of a buffer, rounded up to a multiple of 256. Each reader has two.
    pub buffer_bytes: usize,
    /// Reader threads, at least 1; no more are started than there are pieces.
    pub readers: usize,
}

/// 8 MiB, far beyond where a copy's fixed cost shows, and a reader a core up to 8, which together read and write some
/// 100 GB/s: more than a link of 16 lanes takes.
impl Default for Ring {
    fn default() -> Ring {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Ring { buffer_bytes: 8 << 20, readers: cores.min(8) }
    }
}

/// Uploads every tensor of `layout` from `checkpoint` into `arena`, `[layout.bytes()]`, zeros between the tensors
/// included. Returns when all of it is there; `progress` is called a few times a second on this thread, and once at the
/// end. Whoever allocated `arena` on another stream has had this thread or `stream` wait for that.
///
/// # Errors
/// [`UploadError`]. A tensor that is not as the layout has it, and finite values beyond the range of f16, are
/// [`CheckpointError::Tensor`]. What `arena` then holds is undefined; no copy into it is left.
pub fn upload(
    stream: &Stream,
    checkpoint: &Checkpoint,
    layout: &Layout,
    arena: &mut Buffer<u8>,
    ring: Ring,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<(), UploadError> {
    let bytes = layout.bytes() as usize;
    if arena.len() != bytes {
        return Err(CudaError::CopyLength { from: bytes, into: arena.len() }.into());
    }
    let regions = layout.parts().chunk_by(|one, other| one.region == other.region);
    let contents = regions.map(|parts| Contents::find(checkpoint, parts)).collect::<Result<Vec<_>, _>>()?;
    fill(stream, arena, ring, &|range, piece| write_piece(&contents, range, piece), progress)
}

/// A region of the arena, and the tensors that fill it.
struct Contents<'a> {
    region: Region,
    sources: Vec<Source<'a>>,
    packer: &'static dyn Packer,
}

impl<'a> Contents<'a> {
    /// `parts` are those of one region.
    fn find(checkpoint: &'a Checkpoint, parts: &'a [Part]) -> Result<Contents<'a>, UploadError> {
        // Parts are grouped by region: no group is empty.
        let part = &parts[0];
        let region = part.region;
        let no_packer = || UploadError::NoPacker { tensor: part.tensor.clone() };
        let packer = packer(&region.format).ok_or_else(no_packer)?;
        let sources = parts.iter().map(|part| find(checkpoint, part)).collect::<Result<_, _>>()?;
        Ok(Contents { region, sources, packer })
    }
}

fn find<'a>(checkpoint: &'a Checkpoint, part: &'a Part) -> Result<Source<'a>, CheckpointError> {
    let wrong = |file: String, found: String| CheckpointError::Tensor {
        file,
        tensor: part.tensor.clone(),
        found,
        expected: format!("{} rows of {}", part.tensor_rows, part.columns),
        advice: "check that config.json and the weights belong together",
    };
    let Some(tensor) = checkpoint.tensor(&part.tensor) else {
        return Err(wrong(checkpoint.source().to_string(), "no such tensor".to_owned()));
    };
    if tensor.bytes().len() != part.tensor_rows * part.columns * tensor.dtype().size() {
        return Err(wrong(tensor.file().to_owned(), format!("shape {:?}", tensor.shape())));
    }
    Ok(Source { part, tensor })
}

/// Writes the arena's bytes `range`: those of the regions, and zeros between them. `contents` are in the arena's order.
fn write_piece(contents: &[Contents<'_>], range: Range<usize>, piece: &mut [u8]) -> Result<(), UploadError> {
    let mut written = range.start;
    let first = contents.partition_point(|contents| contents.region.range().end <= range.start);
    for Contents { region, sources, packer } in &contents[first..] {
        let whole = region.range();
        if whole.start >= range.end {
            break;
        }
        let (start, end) = (whole.start.max(range.start), whole.end.min(range.end));
        piece[written - range.start..start - range.start].fill(0);
        packer.pack(
            sources,
            start - whole.start..end - whole.start,
            &mut piece[start - range.start..end - range.start],
        )?;
        written = end;
    }
    piece[written - range.start..].fill(0);
    Ok(())
}

/// A destination of `total` elements in pieces of one length, so that every buffer is copied whole: the last piece may
/// begin inside the one before, whose elements it then repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pieces {
    total: usize,
    len: usize,
    count: usize,
}

impl Pieces {
    /// As even as can be, of `most` elements at the most; starts are multiples of `alignment` where `total` is one.
    fn new(total: usize, most: usize, alignment: usize) -> Pieces {
        let most = most.max(1).next_multiple_of(alignment);
        let len = total.div_ceil(total.div_ceil(most).max(1)).next_multiple_of(alignment).min(total);
        Pieces { total, len, count: if len == 0 { 0 } else { total.div_ceil(len) } }
    }

    fn range(self, piece: usize) -> Range<usize> {
        let start = (piece * self.len).min(self.total - self.len);
        start..start + self.len
    }
}

/// Sets the elements of a range of the destination; called from several threads at once.
pub type Write<'a, T> = dyn Fn(Range<usize>, &mut [T]) -> Result<(), UploadError> + Sync + 'a;

/// Fills `destination` with what `write` makes of each range of its elements, on several threads and through pinned
/// memory; see the [module](self). `write` is given every element at least once, and whatever was in the slice before:
/// it must set all of it, the same values every time. Returns when all of it is there; `progress` is called a few times
/// a second on this thread, and once at the end. Ranges begin at multiples of 256 bytes where the destination's length
/// is one.
///
/// # Errors
/// The first error of `write`, or of the device. What `destination` then holds is undefined; no copy into it is left,
/// and no thread.
pub fn fill<T: Pod + Send>(
    stream: &Stream,
    destination: &mut Buffer<T>,
    ring: Ring,
    write: &Write<'_, T>,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<(), UploadError> {
    let began = Instant::now();
    let size = size_of::<T>().max(1);
    let alignment = ALIGNMENT_BYTES.div_ceil(size);
    let pieces = Pieces::new(destination.len(), ring.buffer_bytes / size, alignment);
    let total_bytes = (pieces.total * size) as u64;
    let mut report = |done: usize| {
        let done_bytes = total_bytes.min((done * pieces.len * size) as u64);
        progress(LoadProgress { stage: LoadStage::Upload, done_bytes, total_bytes, elapsed: began.elapsed() });
    };
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        // Everything that ends a reader's waiting lives in here: on any way out, a panic of `progress` too, the readers
        // find their channels closed and end before the scope does.
        let (filled, from_readers) = mpsc::channel();
        let mut readers = Vec::new();
        let mut to_readers = Vec::new();
        for index in 0..ring.readers.clamp(1, pieces.count.max(1)) {
            let (emptied, spare) = mpsc::channel();
            let reader = Reader { index, stream, pieces, next: &next, write, spare, filled: filled.clone() };
            match thread::Builder::new().name("rigel-load".to_owned()).spawn_scoped(scope, move || reader.run()) {
                Ok(handle) => {
                    readers.push(handle);
                    to_readers.push(emptied);
                }
                // Those that there are will do.
                Err(_) if index > 0 => break,
                Err(source) => return Err(UploadError::Thread { source }),
            }
        }
        drop(filled);
        let copied = copy_pieces(stream, destination, pieces, &from_readers, &to_readers, &mut report);
        // Readers that are still at work after an error end at their next piece.
        drop((from_readers, to_readers));
        let read = readers.into_iter().map(join).collect::<Vec<_>>();
        read.into_iter().collect::<Result<(), UploadError>>()?;
        copied
    })?;
    stream.synchronize()?;
    report(pieces.count);
    Ok(())
}

/// A piece that is ready for its copy.
struct Filled<T> {
    piece: usize,
    buffer: Pinned<T>,
    /// To whom the buffer goes back.
    reader: usize,
}

/// Gives pieces to the stream in whatever order they come, and their buffers back.
fn copy_pieces<T: Pod>(
    stream: &Stream,
    destination: &mut Buffer<T>,
    pieces: Pieces,
    from_readers: &Receiver<Filled<T>>,
    to_readers: &[Sender<Pinned<T>>],
    report: &mut dyn FnMut(usize),
) -> Result<(), UploadError> {
    // A buffer that is dropped waits for its copy, and its release for the whole device: not before the end.
    let mut spent = Vec::new();
    let mut copied = 0;
    let mut reported = Instant::now();
    while copied < pieces.count {
        match from_readers.recv_timeout(TICK) {
            Ok(Filled { piece, buffer, reader }) => {
                let range = pieces.range(piece);
                let length = CudaError::CopyLength { from: range.len(), into: destination.len() };
                stream.copy_from_pinned(&buffer, destination.slice_mut(range).ok_or(length)?)?;
                copied += 1;
                // A reader that found no piece left has ended.
                if let Err(SendError(buffer)) = to_readers[reader].send(buffer) {
                    spent.push(buffer);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            // Readers ended before their time; they say why.
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        if reported.elapsed() >= TICK {
            report(copied);
            reported = Instant::now();
        }
    }
    Ok(())
}

/// A thread that makes pieces.
struct Reader<'a, T> {
    index: usize,
    stream: &'a Stream,
    pieces: Pieces,
    /// The next piece that nobody has taken.
    next: &'a AtomicUsize,
    write: &'a Write<'a, T>,
    /// Its buffers, on their way back.
    spare: Receiver<Pinned<T>>,
    filled: Sender<Filled<T>>,
}

impl<T: Pod> Reader<'_, T> {
    /// Makes pieces until there are none left, or until nobody wants them any more.
    fn run(self) -> Result<(), UploadError> {
        // However this one ends, by a panic too, the others take no further piece.
        let _last_call = LastCall { next: self.next, count: self.pieces.count };
        let mut made = 0;
        loop {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            if piece >= self.pieces.count {
                return Ok(());
            }
            let mut buffer = match self.spare.try_recv() {
                Ok(buffer) => buffer,
                Err(TryRecvError::Empty) if made < BUFFERS => {
                    made += 1;
                    Pinned::zeroed(self.stream.device(), self.pieces.len)?
                }
                Err(_) => match self.spare.recv() {
                    Ok(buffer) => buffer,
                    Err(_) => return Ok(()),
                },
            };
            // Waits for the copy of the piece that was in it.
            (self.write)(self.pieces.range(piece), buffer.as_mut_slice()?)?;
            if self.filled.send(Filled { piece, buffer, reader: self.index }).is_err() {
                return Ok(());
            }
        }
    }
}

struct LastCall<'a> {
    next: &'a AtomicUsize,
    count: usize,
}

impl Drop for LastCall<'_> {
    fn drop(&mut self) {
        self.next.fetch_max(self.count, Ordering::Relaxed);
    }
}

fn join(reader: ScopedJoinHandle<'_, Result<(), UploadError>>) -> Result<(), UploadError> {
    reader.join().unwrap_or_else(|panic| Err(UploadError::Reader { reason: message(&*panic) }))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a message").to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_cover_everything_evenly(total in 0usize..10_000, most in 0usize..3000, whole in any::<bool>()) {
            let total = if whole { total.next_multiple_of(128) } else { total };
            let pieces = Pieces::new(total, most, 128);
            let mut end = 0;
            for piece in 0..pieces.count {
                let range = pieces.range(piece);
                prop_assert!(range.start <= end && range.end > end, "a gap, or nothing new");
                prop_assert_eq!(range.len(), pieces.len);
                prop_assert!(!whole || range.start.is_multiple_of(128));
                end = range.end;
            }
            prop_assert_eq!(end, total);
            prop_assert!(pieces.len <= most.max(1).next_multiple_of(128));
            // What is copied twice is less than a piece.
            prop_assert!(pieces.count == 0 || pieces.count * pieces.len < total + pieces.len);
        }
    }
}
