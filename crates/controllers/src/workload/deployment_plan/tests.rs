use super::*;
use crate::clock;
use serde_json::{Value, json};

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

fn deployment(image: &str, replicas: i32, extra: Value) -> Deployment {
    let mut spec = json!({
        "replicas": replicas,
        "progressDeadlineSeconds": 600,
        "revisionHistoryLimit": 2,
        "selector": {"matchLabels": {"a": "b"}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
    });
    spec.as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "n", "uid": "d", "generation": 1, "annotations": {"note": "kept"}},
        "spec": spec,
    }))
    .unwrap()
}

/// A cluster of one Deployment: applies plans, and makes pods available when told.
struct World {
    deployment: Deployment,
    sets: Vec<Arc<ReplicaSet>>,
    born: i64,
    at: Timestamp,
}

impl World {
    fn new(deployment: Deployment) -> Self {
        Self {
            deployment,
            sets: Vec::new(),
            born: 0,
            at: now(),
        }
    }

    fn plan(&self) -> Plan {
        plan(&Input {
            deployment: &self.deployment,
            sets: &self.sets,
            old_pods_running: self.old_running(),
            now: self.at,
        })
    }

    fn old_running(&self) -> bool {
        let new = find_new(&self.deployment, &self.sets).map(|s| s.metadata.uid.clone());
        self.sets
            .iter()
            .any(|s| Some(&s.metadata.uid) != new.as_ref() && status_of(s).0 > 0)
    }

    /// One pass of the controller; returns whether it changed anything.
    fn step(&mut self) -> bool {
        let plan = self.plan();
        let mut changed = false;
        if let Some(mut set) = plan.create {
            self.born += 1;
            set.metadata.uid = Some(format!("set-{}", self.born));
            set.metadata.generation = Some(1);
            let created = Timestamp::from_second(1_700_000_000 + self.born).unwrap();
            set.metadata.creation_timestamp = Some(clock::stamp(created));
            self.sets.push(Arc::new(set));
            changed = true;
        }
        for resize in plan.resize {
            let slot = self
                .sets
                .iter_mut()
                .find(|s| s.metadata.uid == resize.set.metadata.uid)
                .unwrap();
            *slot = Arc::new(resize.set);
            changed = true;
        }
        for gone in plan.delete {
            self.sets.retain(|s| s.metadata.uid != gone.metadata.uid);
            changed = true;
        }
        if let Some(annotations) = plan.annotate {
            changed |= self.deployment.metadata.annotations.as_ref() != Some(&annotations);
            self.deployment.metadata.annotations = Some(annotations);
        }
        changed |= self.deployment.status.as_ref() != Some(&plan.status);
        self.deployment.status = Some(plan.status);
        changed
    }

    /// Every ReplicaSet reaches its size; with `healthy`, all its pods become available.
    fn settle_pods(&mut self, healthy: bool) {
        for set in &mut self.sets {
            let count = size(set);
            let mut next = ReplicaSet::clone(set);
            let status = next.status.get_or_insert_default();
            let up = if healthy {
                count
            } else {
                status.available_replicas.unwrap_or(0).min(count)
            };
            status.replicas = count;
            status.ready_replicas = Some(up);
            status.available_replicas = Some(up);
            status.observed_generation = next.metadata.generation;
            *set = Arc::new(next);
        }
    }

    fn run(&mut self) {
        for _ in 0..100 {
            let changed = self.step();
            self.settle_pods(true);
            if !changed {
                return;
            }
        }
        panic!("the rollout does not come to rest");
    }

    fn sizes(&self) -> Vec<i32> {
        self.sets.iter().map(|s| size(s)).collect()
    }

    fn condition(&self, kind: &str) -> (String, String) {
        let status = self.deployment.status.as_ref().unwrap();
        let c = status
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == kind)
            .unwrap();
        (c.status.clone(), c.reason.clone().unwrap())
    }

    fn set_image(&mut self, image: &str) {
        let template = &mut self.deployment.spec.as_mut().unwrap().template;
        template.spec.as_mut().unwrap().containers[0].image = Some(image.to_owned());
        self.deployment.metadata.generation =
            Some(self.deployment.metadata.generation.unwrap() + 1);
    }
}

#[test]
fn a_new_deployment_comes_up_in_one_step() {
    let mut world = World::new(deployment("v1", 50, json!({})));
    world.step();
    assert_eq!(world.sizes(), [50]);
    assert_eq!(
        world.condition("Progressing"),
        ("True".into(), "NewReplicaSetCreated".into())
    );
    let set = &world.sets[0];
    let hash = pod::label(&set.metadata, HASH_LABEL).unwrap();
    assert_eq!(set.metadata.name.as_deref(), Some(&*format!("web-{hash}")));
    assert_eq!(pod::annotation(&set.metadata, "note"), Some("kept"));
    assert_eq!(pod::annotation(&set.metadata, REVISION), Some("1"));
    world.settle_pods(true);
    world.run();
    assert_eq!(
        world.condition("Progressing"),
        ("True".into(), "NewReplicaSetAvailable".into())
    );
    assert_eq!(
        world.condition("Available"),
        ("True".into(), "MinimumReplicasAvailable".into())
    );
    assert_eq!(revision(&world.deployment.metadata), 1);
}

#[test]
fn a_rollout_never_leaves_its_bounds() {
    for (surge, unavailable) in [
        ("25%", "25%"),
        ("1", "0"),
        ("0", "1"),
        ("100%", "0%"),
        ("0", "0"),
    ] {
        let parse = |s: &str| s.parse::<i32>().map_or(json!(s), |n| json!(n));
        let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": parse(surge), "maxUnavailable": parse(unavailable)}});
        let mut world = World::new(deployment("v1", 10, json!({"strategy": strategy})));
        world.run();
        world.set_image("v2");
        let (max_surge, max_away) = fence_posts(&world.deployment);
        let mut passes = 0;
        loop {
            let changed = world.step();
            let total: i32 = world.sizes().iter().sum();
            assert!(
                total <= 10 + max_surge,
                "{surge}/{unavailable}: {:?}",
                world.sizes()
            );
            let up: i32 = world.sets.iter().map(|s| available(s).min(size(s))).sum();
            assert!(up >= 10 - max_away, "{surge}/{unavailable}: {up} available");
            world.settle_pods(true);
            passes += 1;
            if !changed {
                break;
            }
            assert!(passes < 100, "{surge}/{unavailable} does not come to rest");
        }
        assert_eq!(world.sizes(), [0, 10], "{surge}/{unavailable}");
        assert_eq!(revision(&world.sets[1].metadata), 2);
        assert_eq!(revision(&world.deployment.metadata), 2);
    }
}

#[test]
fn a_broken_template_stops_the_rollout_and_times_out() {
    let mut world = World::new(deployment("v1", 4, json!({})));
    world.run();
    world.set_image("broken");
    for _ in 0..10 {
        world.step();
        world.settle_pods(false);
    }
    assert_eq!(world.sizes(), [3, 2], "one may be away, one may be extra");
    assert!(
        world.plan().requeue.is_some(),
        "somebody has to look at the deadline"
    );
    world.at = clock::after(world.at, 601);
    world.step();
    assert_eq!(
        world.condition("Progressing"),
        ("False".into(), "ProgressDeadlineExceeded".into())
    );
    assert_eq!(
        world.condition("Available"),
        ("True".into(), "MinimumReplicasAvailable".into())
    );
}

#[test]
fn undo_makes_the_old_set_the_newest_revision() {
    let mut world = World::new(deployment("v1", 2, json!({})));
    world.run();
    world.set_image("v2");
    world.run();
    world.set_image("v1");
    world.run();
    assert_eq!(
        world.sizes(),
        [2, 0],
        "the set of the first template is used again"
    );
    assert_eq!(revision(&world.sets[0].metadata), 3);
    assert_eq!(
        pod::annotation(&world.sets[0].metadata, REVISION_HISTORY),
        Some("1")
    );
}

#[test]
fn history_is_limited() {
    let mut world = World::new(deployment("v0", 1, json!({})));
    for n in 1..=5 {
        world.run();
        world.set_image(&format!("v{n}"));
    }
    world.run();
    let revisions: Vec<i64> = world.sets.iter().map(|s| revision(&s.metadata)).collect();
    assert_eq!(revisions, [4, 5, 6], "two old ones are kept");
}

#[test]
fn recreate_waits_for_the_old_pods() {
    let mut world = World::new(deployment(
        "v1",
        3,
        json!({"strategy": {"type": "Recreate"}}),
    ));
    world.run();
    world.set_image("v2");
    world.step();
    assert_eq!(world.sizes(), [0]);
    world.step();
    assert_eq!(world.sizes(), [0], "pods of the old template still run");
    world.settle_pods(true);
    world.step();
    assert_eq!(world.sizes(), [0, 3]);
}

#[test]
fn scaling_in_the_middle_of_a_rollout_is_proportional() {
    let mut world = World::new(deployment("v1", 10, json!({})));
    world.run();
    world.set_image("broken");
    for _ in 0..10 {
        world.step();
        world.settle_pods(false);
    }
    assert_eq!(world.sizes(), [8, 5]);
    world.deployment.spec.as_mut().unwrap().replicas = Some(20);
    world.step();
    let sizes = world.sizes();
    assert_eq!(sizes.iter().sum::<i32>(), 25, "{sizes:?}");
    assert!(sizes[0] > 8 && sizes[1] > 5, "both grow: {sizes:?}");
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut world = World::new(deployment("v1", 2, json!({})));
    world.run();
    world.deployment.spec.as_mut().unwrap().paused = Some(true);
    world.set_image("v2");
    world.deployment.spec.as_mut().unwrap().replicas = Some(5);
    world.run();
    assert_eq!(world.sizes(), [5]);
    assert_eq!(
        world.condition("Progressing"),
        ("Unknown".into(), "DeploymentPaused".into())
    );
    world.deployment.spec.as_mut().unwrap().paused = None;
    world.run();
    assert_eq!(world.sizes(), [0, 5]);
}

#[test]
fn at_rest_nothing_is_written() {
    let mut world = World::new(deployment("v1", 3, json!({})));
    world.run();
    let plan = world.plan();
    assert!(
        plan.create.is_none()
            && plan.resize.is_empty()
            && plan.delete.is_empty()
            && plan.annotate.is_none()
    );
    assert_eq!(Some(&plan.status), world.deployment.status.as_ref());
    assert!(plan.requeue.is_none());
}
