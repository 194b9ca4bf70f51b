//! Messages in the JSON form of protobuf (enum names, camelCase), as crictl prints them.

use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::{Map, Value};

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let mut pool = DescriptorPool::new();
    for set in [api::cri::DESCRIPTORS, api::meridian::DESCRIPTORS] {
        pool.decode_file_descriptor_set(set).expect("built from the same proto files as the messages");
    }
    pool
});

/// The message of the named type, with every field, also those at their default.
pub fn message(name: &str, message: &impl Message) -> Value {
    let descriptor = POOL.get_message_by_name(name).expect("a type of the proto files");
    let decoded = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice());
    let dynamic = decoded.expect("what one description encodes, the other decodes");
    let options = SerializeOptions::new().skip_default_fields(false);
    dynamic.serialize_with_options(serde_json::value::Serializer, &options).expect("JSON holds every message")
}

/// `{ "<key>": [messages] }`.
pub fn list<'m, M: Message + 'm>(key: &str, name: &str, messages: impl IntoIterator<Item = &'m M>) -> Value {
    let values: Vec<Value> = messages.into_iter().map(|m| message(name, m)).collect();
    Value::Object(Map::from_iter([(key.to_owned(), Value::Array(values))]))
}

/// The verbose part of a status: values that are JSON objects become so, others stay text.
pub fn info(map: std::collections::HashMap<String, String>) -> Value {
    let value = |text: String| match serde_json::from_str(&text) {
        Ok(value @ Value::Object(_)) => value,
        _ => Value::String(text),
    };
    Value::Object(map.into_iter().map(|(k, v)| (k, value(v))).collect())
}

#[cfg(test)]
mod tests {
    use api::cri::v1::{Container, ContainerMetadata, ContainerState};

    use super::*;

    #[test]
    fn enums_have_names_and_zeroes_are_shown() {
        let container = Container {
            id: "c1".into(),
            metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
            state: ContainerState::ContainerRunning as i32,
            created_at: 1_700_000_000_000_000_000,
            ..Default::default()
        };
        let json = message("runtime.v1.Container", &container);
        assert_eq!(json["state"], "CONTAINER_RUNNING");
        assert_eq!(json["metadata"]["attempt"], 0);
        assert_eq!(json["createdAt"], "1700000000000000000", "64-bit numbers are strings in protobuf's JSON");
    }

    #[test]
    fn info_holds_objects() {
        let map = [("info".to_owned(), r#"{"pid":7}"#.to_owned()), ("note".to_owned(), "7".to_owned())];
        let json = info(map.into());
        assert_eq!(json["info"]["pid"], 7);
        assert_eq!(json["note"], "7");
    }
}
