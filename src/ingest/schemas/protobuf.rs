//! Protobuf: the `.proto` source that a registry keeps, compiled, and one message as JSON.

use super::{Broken, zigzag};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost_reflect::prost::Message as _;
use prost_reflect::prost_types::FileDescriptorProto;
use prost_reflect::{DescriptorPool, DynamicMessage, FileDescriptor, MessageDescriptor, SerializeOptions};
use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver};
use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What the compiler calls the schema itself; references have names of their own.
const MAIN: &str = "guardraild-schema.proto";
/// Messages inside messages that an index may lead into, at most.
const MAX_NESTING: i64 = 32;
/// Fields are called as in the `.proto` file, numbers stay numbers, and what is unset without being `optional` has its default.
const OPTIONS: SerializeOptions =
    SerializeOptions::new().stringify_64_bit_integers(false).use_proto_field_name(true).skip_default_fields(false);

/// A compiled file.
#[derive(Debug)]
pub struct Protobuf(FileDescriptor);

/// The files that a schema imports, by the names of its references.
struct References(BTreeMap<String, String>);

impl FileResolver for References {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        match self.0.get(name) {
            Some(source) => file(name, source),
            None => Err(protox::Error::file_not_found(name)),
        }
    }
}

/// A file by its `.proto` text, or by the base64 of its descriptor: some clients register that.
fn file(name: &str, source: &str) -> Result<File, protox::Error> {
    let descriptor = STANDARD.decode(source.trim()).ok().and_then(|bytes| FileDescriptorProto::decode(&*bytes).ok());
    match descriptor {
        Some(descriptor) => Ok(File::from_file_descriptor_proto(FileDescriptorProto { name: Some(name.to_owned()), ..descriptor })),
        None => File::from_source(name, source),
    }
}

/// Defaults are written out, so that a short message may become a long text.
struct Bounded<'o> {
    out: &'o mut Vec<u8>,
    room: usize,
}

impl io::Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.out.len() + bytes.len() > self.room {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.out.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Protobuf {
    /// Compiles a schema; `references` are name and source of what it imports. Google's own files need not be among them.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn compile(schema: &str, references: Vec<(String, String)>) -> Result<Protobuf, String> {
        let mut files: BTreeMap<String, String> = references.into_iter().collect();
        files.insert(MAIN.to_owned(), schema.to_owned());
        let mut resolver = ChainFileResolver::new();
        resolver.add(References(files));
        resolver.add(GoogleFileResolver::new());
        let mut compiler = protox::Compiler::with_file_resolver(resolver);
        let compile = || compiler.include_imports(true).open_file(MAIN).map(drop).map_err(|error| error.to_string());
        // It asserts what does not hold of all texts, `0090` for one: then the schema is refused, and its thread lives on.
        catch_unwind(AssertUnwindSafe(compile)).unwrap_or_else(|_| Err("the compiler failed on it".to_owned()))?;
        let pool: DescriptorPool = compiler.descriptor_pool();
        pool.get_file_by_name(MAIN).map(Protobuf).ok_or_else(|| "the compiler lost it".to_owned())
    }

    /// Makes JSON of a message, its index before it: `out`, of `room` bytes at most.
    ///
    /// # Errors
    /// Where the bytes do not fit the schema, or there is too little room.
    pub fn decode(&self, mut bytes: &[u8], out: &mut Vec<u8>, room: usize) -> Result<(), Broken> {
        let message = self.message(&mut bytes)?;
        let message = DynamicMessage::decode(message, bytes).map_err(|_| Broken("no message of its schema"))?;
        let mut json = serde_json::Serializer::new(Bounded { out, room });
        message.serialize_with_options(&mut json, &OPTIONS).map_err(|_| Broken("too long, or nothing that JSON can hold"))
    }

    /// The message that the index names: of the file's messages one, of its messages one, and so on. A lone 0 is the first.
    fn message(&self, bytes: &mut &[u8]) -> Result<MessageDescriptor, Broken> {
        const NONE: Broken = Broken("a message that its schema does not have");
        let length = zigzag(bytes)?;
        if length == 0 {
            return self.0.messages().next().ok_or(NONE);
        }
        if !(1..=MAX_NESTING).contains(&length) {
            return Err(NONE);
        }
        let mut index = || usize::try_from(zigzag(bytes)?).map_err(|_| NONE);
        let mut message = self.0.messages().nth(index()?).ok_or(NONE)?;
        for _ in 1..length {
            let at = index()?;
            let child = message.child_messages().nth(at);
            message = child.ok_or(NONE)?;
        }
        Ok(message)
    }
}
