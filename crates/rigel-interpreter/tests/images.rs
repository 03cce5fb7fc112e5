//! The stand-in driver's checks of a module's image: that it is whole, that it has code for the device, and that its
//! machine code has each kernel with the parameters that the host compiler saw.

mod workbench;

use std::sync::{Mutex, MutexGuard};

use cudarc::driver::sys::CUresult::{self, *};
use cudarc::driver::{CudaContext, DriverError};
use cudarc::nvrtc::Ptx;
use rigel_interpreter::{DeviceProfile, Interpreter};
use workbench::Bench;

/// A kernel of this library, `(const float* x, float* y, int n)`.
const KERNEL: &str = "correct_exchange";
const PARAMETERS: [u32; 3] = [8, 8, 4];

/// What is played belongs to the process: one test at a time.
fn play(profile: DeviceProfile) -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    Interpreter::load().set_device(profile);
    alone
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

/// A cubin as ptxas lays it out, as far as kernels and their parameters go: ELF-64 with `.text.<kernel>` and
/// `.nv.info.<kernel>`, whose attributes 0x17 are a parameter each, the last first.
fn cubin(kernel: &str, parameters: &[u32]) -> Vec<u8> {
    let mut info = vec![4, 0x37, 4, 0, 0x82, 0, 0, 0, 3, 0x50, 0, 0];
    for (ordinal, size) in parameters.iter().enumerate().rev() {
        info.extend([4, 0x17, 12, 0, 0, 0, 0, 0]);
        info.extend((ordinal as u16).to_le_bytes());
        info.extend([0, 0]);
        info.extend((size << 18 | 0x1f000).to_le_bytes());
    }
    let mut names = b"\0.shstrtab\0".to_vec();
    let mut name = |text: String| {
        let at = names.len() as u32;
        names.extend(text.bytes().chain([0]));
        at
    };
    let (code_name, info_name) = (name(format!(".text.{kernel}")), name(format!(".nv.info.{kernel}")));
    let sections = [(0u32, vec![]), (1, padded(names)), (code_name, vec![0; 16]), (info_name, info)];

    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(64, 0);
    let mut headers = Vec::new();
    for (name, bytes) in &sections {
        let mut header = [0u8; 64];
        header[0..4].copy_from_slice(&name.to_le_bytes());
        header[24..32].copy_from_slice(&(file.len() as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        headers.extend(header);
        file.extend(padded(bytes.clone()));
    }
    let table = file.len() as u64;
    file[40..48].copy_from_slice(&table.to_le_bytes());
    for (at, value) in [(58, 64u16), (60, sections.len() as u16), (62, 1)] {
        file[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    file.extend(headers);
    file
}

enum Code {
    Machine(Vec<u8>),
    Ptx,
}

/// A fatbin with these entries, each for an architecture such as 80.
fn fatbin(entries: &[(u32, Code)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (architecture, code) in entries {
        let (kind, payload) = match code {
            Code::Ptx => (1u16, padded(b".version 9.0".to_vec())),
            Code::Machine(cubin) => (2, cubin.clone()),
        };
        let mut header = [0u8; 64];
        header[0..2].copy_from_slice(&kind.to_le_bytes());
        header[4..8].copy_from_slice(&64u32.to_le_bytes());
        header[8..16].copy_from_slice(&(payload.len() as u64).to_le_bytes());
        header[28..32].copy_from_slice(&architecture.to_le_bytes());
        body.extend(header);
        body.extend(payload);
    }
    let mut file = 0xba55_ed50_u32.to_le_bytes().to_vec();
    file.extend(1u16.to_le_bytes());
    file.extend(16u16.to_le_bytes());
    file.extend((body.len() as u64).to_le_bytes());
    file.extend(body);
    file
}

fn whole() -> Vec<u8> {
    fatbin(&[(80, Code::Machine(cubin(KERNEL, &PARAMETERS))), (80, Code::Ptx)])
}

/// Loads the image and asks it for the kernel.
fn load(image: Vec<u8>) -> Result<(), DriverError> {
    let context = CudaContext::new(0).expect("a device");
    context.load_module(Ptx::from_binary(image))?.load_function(KERNEL).map(drop)
}

#[track_caller]
fn refused(image: Vec<u8>) -> CUresult {
    load(image).expect_err("it must be refused").0
}

#[test]
fn an_image_with_the_kernel_as_it_was_linked_in_is_taken() {
    for profile in [DeviceProfile::Sm80, DeviceProfile::Sm86, DeviceProfile::Sm90] {
        let _alone = play(profile);
        load(whole()).unwrap_or_else(|error| panic!("{profile:?}: {error:?}"));
    }
}

/// What the report of the one failed check says.
#[track_caller]
fn mismatch(image: Vec<u8>) -> String {
    let interpreter = Interpreter::load();
    interpreter.take_reports();
    assert_eq!(refused(image), CUDA_ERROR_NOT_FOUND);
    let mut reports = interpreter.take_reports();
    assert_eq!(reports.len(), 1, "{reports:?}");
    reports.remove(0)
}

#[test]
fn a_kernel_that_the_machine_code_lacks_or_has_otherwise_is_named() {
    // On 9.0 the PTX would be compiled: it is of the same source as the machine code for 8.0 beside it.
    for profile in [DeviceProfile::Sm80, DeviceProfile::Sm90] {
        let _alone = play(profile);
        let with =
            |kernel, parameters: &[u32]| fatbin(&[(80, Code::Machine(cubin(kernel, parameters))), (80, Code::Ptx)]);
        assert_eq!(
            mismatch(with("correct_exchanges", &PARAMETERS)),
            "kernel correct_exchange is not in the module's machine code"
        );
        assert_eq!(
            mismatch(with(KERNEL, &[8, 8])),
            "kernel correct_exchange takes 3 arguments, 2 in the module's machine code"
        );
        assert_eq!(
            mismatch(with(KERNEL, &[8, 8, 4, 4])),
            "kernel correct_exchange takes 3 arguments, 4 in the module's machine code"
        );
        assert_eq!(
            mismatch(with(KERNEL, &[8, 8, 8])),
            "kernel correct_exchange: argument 2 has 4 bytes, 8 in the module's machine code"
        );
    }
}

/// The machine code that the device would run is the one that is compared.
#[test]
fn the_newest_machine_code_for_the_device_counts() {
    let image = || {
        fatbin(&[
            (90, Code::Machine(cubin(KERNEL, &[8]))),
            (80, Code::Machine(cubin(KERNEL, &PARAMETERS))),
            (86, Code::Machine(cubin(KERNEL, &[8, 8]))),
        ])
    };
    let _alone = play(DeviceProfile::Sm80);
    load(image()).expect("that for 8.0 is right");
    Interpreter::load().set_device(DeviceProfile::Sm86);
    assert!(mismatch(image()).contains("takes 3 arguments, 2 in"));
    Interpreter::load().set_device(DeviceProfile::Sm90);
    assert!(mismatch(image()).contains("takes 3 arguments, 1 in"));
}

#[test]
fn a_kernel_that_was_not_linked_in_is_not_found() {
    let _alone = play(DeviceProfile::Sm80);
    let context = CudaContext::new(0).expect("a device");
    let image = fatbin(&[(80, Code::Machine(cubin("unheard_of", &PARAMETERS)))]);
    let module = context.load_module(Ptx::from_binary(image)).expect("a whole image");
    assert_eq!(module.load_function("unheard_of").expect_err("no such kernel").0, CUDA_ERROR_NOT_FOUND);
}

#[test]
fn an_image_without_code_for_the_device_is_refused() {
    let _alone = play(DeviceProfile::Sm86);
    let machine = || Code::Machine(cubin(KERNEL, &PARAMETERS));
    assert_eq!(refused(fatbin(&[(90, machine()), (90, Code::Ptx)])), CUDA_ERROR_NO_BINARY_FOR_GPU);
    // Another major version's machine code does not run; its PTX, being older, does.
    assert_eq!(refused(fatbin(&[(75, machine())])), CUDA_ERROR_NO_BINARY_FOR_GPU);
    load(fatbin(&[(75, machine()), (75, Code::Ptx)])).expect("PTX of an older device");
    assert_eq!(refused(fatbin(&[])), CUDA_ERROR_NO_BINARY_FOR_GPU);
}

#[test]
fn an_image_newer_than_the_driver_is_refused() {
    for version in [12_090, 12_000] {
        let _alone = play(DeviceProfile::OldDriver { version });
        assert_eq!(refused(whole()), CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    }
    let _alone = play(DeviceProfile::OldDriver { version: 13_020 });
    load(whole()).expect("an older image than the driver's");
}

#[test]
fn a_damaged_image_is_refused_whatever_its_numbers_say() {
    let _alone = play(DeviceProfile::Sm80);
    let image = whole();
    for magic in [b"\x7fELF", b".ver", b"\xff\xff\xff\xff"] {
        let mut other = image.clone();
        other[..4].copy_from_slice(magic);
        assert_eq!(refused(other), CUDA_ERROR_INVALID_IMAGE);
    }
    let elf = 16 + 64;
    let table = elf + u64::from_le_bytes(image[elf + 40..elf + 48].try_into().unwrap()) as usize;
    let info = table + 3 * 64;
    let places: [(&str, usize, usize); 13] = [
        ("length of the header", 6, 2),
        ("an entry's header", 16 + 4, 4),
        ("an entry's length", 16 + 8, 8),
        ("compressed", 16 + 16, 4),
        ("no ELF file", elf, 4),
        ("place of the section headers", elf + 40, 8),
        ("size of a section header", elf + 58, 2),
        ("number of sections", elf + 60, 2),
        ("section of the names", elf + 62, 2),
        ("place of the names", table + 64 + 24, 8),
        ("a section's name", info, 4),
        ("place of the parameters", info + 24, 8),
        ("length of the parameters", info + 32, 8),
    ];
    for (what, at, bytes) in places {
        let mut damaged = image.clone();
        damaged[at..at + bytes].fill(0xff);
        // The length of the header reaches outside of the file, where nothing may be read: it only has to be refused.
        if what == "length of the header" {
            damaged.resize(damaged.len() + (64 << 10), 0);
        }
        assert_eq!(refused(damaged), CUDA_ERROR_INVALID_IMAGE, "{what}");
    }
    let mut cut = image.clone();
    let shorter = (cut.len() - 16 - 4) as u64;
    cut[8..16].copy_from_slice(&shorter.to_le_bytes());
    assert_eq!(refused(cut), CUDA_ERROR_INVALID_IMAGE, "the last entry is cut");
    load(image).expect("the same image undamaged");
}

/// Tests of planted bugs launch kernels that nvcc never saw, through a placeholder.
#[test]
fn a_placeholder_has_every_kernel_that_was_linked_in() {
    let _alone = play(DeviceProfile::Sm90);
    Bench::open(&[0; 64]).function(KERNEL);
}
