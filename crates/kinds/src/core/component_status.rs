//! ComponentStatus, which is computed and never stored.

use serde_json::Value;

use crate::kind::{Column, Kind};
use crate::tree::Tree;

pub(crate) static COMPONENT_STATUS: Kind = Kind {
    group: "",
    resource: "componentstatuses",
    columns: &[
        Column::text("Status"),
        Column::text("Message"),
        Column::text("Error"),
    ],
    cells: |obj, _| {
        let healthy = obj
            .list("conditions")
            .iter()
            .find(|c| c.text("type") == "Healthy");
        let (status, message, error) = match healthy {
            Some(c) if c.text("status") == "True" => {
                ("Healthy", c.text("message"), c.text("error"))
            }
            Some(c) => ("Unhealthy", c.text("message"), c.text("error")),
            None => ("Unknown", "", ""),
        };
        [status, message, error]
            .into_iter()
            .map(Value::from)
            .collect()
    },
    deprecation: "v1 ComponentStatus is deprecated in v1.19+",
    ..Kind::GENERIC
};
