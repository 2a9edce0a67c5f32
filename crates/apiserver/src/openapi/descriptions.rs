//! Words for what every object has, for `kubectl explain`. Kinds bring none of their own here.

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// Fields of an object's root.
pub(super) fn of_root(field: &str) -> Option<&'static str> {
    Some(match field {
        "apiVersion" => {
            "APIVersion defines the group and version whose schema this object follows."
        }
        "kind" => "Kind names the type of this object; it does not change.",
        "metadata" => "Standard object's metadata: its name, labels, owners and history.",
        _ => return None,
    })
}

/// A built-in type as a whole.
pub(super) fn of_type(name: &str) -> Option<&'static str> {
    Some(match name.strip_prefix(META)? {
        "ObjectMeta" => "What every stored object has beside its content.",
        "ListMeta" => "What a list says of itself.",
        _ => return None,
    })
}

/// A field of a built-in type.
pub(super) fn of_field(owner: &str, field: &str) -> Option<&'static str> {
    match owner.strip_prefix(META)? {
        "ObjectMeta" => of_object_meta(field),
        "ListMeta" => of_list_meta(field),
        _ => None,
    }
}

fn of_object_meta(field: &str) -> Option<&'static str> {
    Some(match field {
        "annotations" => "Annotations hold arbitrary text that tools keep with the object.",
        "creationTimestamp" => {
            "CreationTimestamp is a timestamp of when the server stored the object first."
        }
        "deletionGracePeriodSeconds" => {
            "Seconds the object has to end gracefully once its deletion was asked for."
        }
        "deletionTimestamp" => {
            "When the object is to be gone; set by the server when deletion is asked for."
        }
        "finalizers" => "The object stays until this list is empty.",
        "generateName" => "A prefix the server completes to a unique name where none is given.",
        "generation" => "Counts the changes of the desired state.",
        "labels" => "Labels are keys and values that selectors find the object by.",
        "managedFields" => "Who set which field, kept by the server for server-side apply.",
        "name" => "Name is unique among the objects of a kind in a namespace and never changes.",
        "namespace" => "Namespace within which the name is unique; empty for cluster-wide kinds.",
        "ownerReferences" => {
            "Objects this one depends on; it is collected when all of them are gone."
        }
        "resourceVersion" => {
            "An opaque version of the stored object, for watches and optimistic concurrency."
        }
        "selfLink" => "No longer filled.",
        "uid" => "UID tells apart objects that had the same name at different times.",
        _ => return None,
    })
}

fn of_list_meta(field: &str) -> Option<&'static str> {
    Some(match field {
        "continue" => "A token that asks for the rest of a list that was cut.",
        "remainingItemCount" => "How many items follow, where the server knows.",
        "resourceVersion" => "The state of the collection that the list shows.",
        "selfLink" => "No longer filled.",
        _ => return None,
    })
}
