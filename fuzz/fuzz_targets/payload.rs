#![no_main]

// libfuzzer-sys ends the process at any panic, though it be caught, as those of the Protobuf parser are (`ingest/schemas/protobuf`). One that
// is not caught ends it all the same.
libfuzzer_sys::fuzz_target!(
    init: {
        std::panic::set_hook(Box::new(|panic| {
            if !panic.location().is_some_and(|location| location.file().contains("protox")) {
                eprintln!("{panic}");
            }
        }));
    },
    |data: &[u8]| guardraild_fuzz::payload(data)
);
