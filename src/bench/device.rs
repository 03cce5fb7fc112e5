//! What a run ran on, as its report names it.

use super::report::DeviceRecord;

impl DeviceRecord {
    /// This machine's processor, of which `threads` threads are used.
    pub fn of_cpu(threads: usize) -> DeviceRecord {
        let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).map(str::to_owned);
            line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
        };
        let name = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
        // `MemTotal:  24000000 kB`
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let kilobytes = memory.and_then(|text| text.split(' ').next()?.parse::<u64>().ok()).unwrap_or(0);
        DeviceRecord {
            kind: "cpu".to_owned(),
            name,
            units: threads as u32,
            memory_bytes: kilobytes * 1024,
            ..DeviceRecord::default()
        }
    }
}

#[cfg(feature = "cuda")]
impl DeviceRecord {
    /// A GPU.
    pub fn of_gpu(device: &crate::backend::cuda::Device) -> DeviceRecord {
        let properties = device.properties();
        DeviceRecord {
            kind: "cuda".to_owned(),
            name: properties.name.clone(),
            // A driver that opened a device has a version.
            driver: crate::backend::cuda::driver::version().ok().map(|version| version.to_string()),
            compute_capability: Some(properties.compute_capability.to_string()),
            units: properties.sm_count,
            memory_bytes: properties.memory_bytes,
            cache_bytes: properties.l2_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_has_a_name_and_memory() {
        let record = DeviceRecord::of_cpu(3);
        assert_eq!((record.kind.as_str(), record.units), ("cpu", 3));
        assert!(!record.name.is_empty());
        if cfg!(target_os = "linux") {
            assert!(record.memory_bytes > 1 << 28, "{record:?}");
        }
    }
}
