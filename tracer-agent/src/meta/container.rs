//! Container ids out of `/proc/PID/cgroup`, with `/proc/PID/mountinfo` for private namespaces.
//!
//! Knows the names that docker, containerd, CRI-O and podman give their cgroups, with the cgroupfs
//! and the systemd driver, on v1 and v2, and ECS. Of nested containers the innermost counts.
//! It cannot see containers whose runtime gives the cgroup a name without an id (LXC, systemd-nspawn).

use super::proc_fs::ProcFs;

/// Where a process runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Id of its container; `None` outside of containers.
    pub container_id: Option<Box<str>>,
    /// Id of its pod as the kubelet writes it into cgroups; `None` where it did not.
    pub pod_uid: Option<Box<str>>,
}

impl Place {
    /// Of a process; nothing once it is gone.
    pub fn of(proc: &ProcFs, pid: u32) -> Place {
        let Some(cgroup) = proc.cgroup(pid) else {
            return Place::default();
        };
        if let Some(id) = from_cgroup(&cgroup) {
            return Place {
                container_id: Some(id.into()),
                pod_uid: pod_uid(&cgroup).map(Into::into),
            };
        }
        // A process in the agent's own private cgroup namespace shows no path at all.
        let hidden = cgroup.lines().any(|line| line == "0::/");
        let mounts = if hidden { proc.mountinfo(pid) } else { None };
        let id = mounts.as_deref().and_then(from_mountinfo);
        Place {
            container_id: id.map(Into::into),
            pod_uid: None,
        }
    }
}

/// Id of the pod in the text of `/proc/PID/cgroup`: `pod<uid>` with the cgroupfs driver,
/// `kubepods-burstable-pod<uid with underscores>.slice` with systemd's. Static pods have the hash of
/// their file instead.
pub fn pod_uid(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let path = line.splitn(3, ':').nth(2)?;
        path.rsplit(['/', ':']).find_map(segment_pod)
    })
}

fn segment_pod(segment: &str) -> Option<String> {
    let segment = segment.strip_suffix(".slice").unwrap_or(segment);
    let uid = match segment.strip_prefix("pod") {
        Some(uid) => uid,
        // Of nested clusters the innermost is last.
        None => segment.rsplit_once("-pod")?.1,
    };
    let uid = uid.replace('_', "-");
    let groups: Vec<usize> = uid.split('-').map(str::len).collect();
    let is_uid = matches!(groups[..], [8, 4, 4, 4, 12] | [32])
        && uid
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-'));
    is_uid.then_some(uid)
}

/// Id of the container in the text of `/proc/PID/cgroup` (`hierarchy:controllers:path` per line).
pub fn from_cgroup(text: &str) -> Option<&str> {
    text.lines().find_map(|line| {
        let path = line.splitn(3, ':').nth(2)?;
        path.rsplit('/').find_map(segment_id)
    })
}

/// Id of the container in the text of `/proc/PID/mountinfo`.
///
/// Only the files that runtimes mount into a container count, and only where they come from a
/// directory of that container: on a host the same file lists the layers of all containers.
/// Kubernetes mounts the sandbox's files there, whose id is not the container's: not taken.
pub fn from_mountinfo(text: &str) -> Option<&str> {
    text.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let (root, mount_point) = (fields.next()?, fields.next()?);
        if !matches!(
            mount_point,
            "/etc/hostname" | "/etc/hosts" | "/etc/resolv.conf"
        ) {
            return None;
        }
        let mut segments = root.split('/');
        while let Some(segment) = segments.next() {
            if matches!(segment, "containers" | "overlay-containers")
                && let Some(id) = segments.clone().next().filter(|id| is_hex(id, 64))
            {
                return Some(id);
            }
        }
        None
    })
}

/// One part of a cgroup path: `<id>`, `docker-<id>.scope`, `crio-<id>`, `x.slice:cri-containerd:<id>`,
/// or ECS' `<32 hex>-<digits>`.
fn segment_id(segment: &str) -> Option<&str> {
    // The monitor of a container runs beside it, under its id.
    if segment.contains("conmon") {
        return None;
    }
    if let Some((task, number)) = segment.split_once('-')
        && is_hex(task, 32)
        && !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit())
    {
        return Some(segment);
    }
    segment
        .split(['-', '.', ':', '_'])
        .find(|token| is_hex(token, 64))
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "8c1d0f4c7a1b2e3d4f5061728394a5b6c7d8e9f00112233445566778899aabbc";
    const B: &str = "b4fd06bf4a1c4b7de86e1b12c9f8fa2c8d3a4d5e6f708192a3b4c5d6e7f80911";
    const POD: &str = "pod2b1a7d1c_5e35_4c35_8b9c_0d7f7f4a5a11";

    #[track_caller]
    fn check(text: &str, expected: Option<&str>) {
        let text = text
            .replace("{A}", A)
            .replace("{B}", B)
            .replace("{POD}", POD);
        assert_eq!(from_cgroup(&text), expected, "{text}");
    }

    #[test]
    fn cgroup_samples() {
        for (text, expected) in [
            // docker: cgroupfs v1, systemd v1, cgroupfs v2, systemd v2.
            (
                "12:pids:/docker/{A}\n11:cpu,cpuacct:/docker/{A}\n1:name=systemd:/docker/{A}\n",
                Some(A),
            ),
            (
                "11:memory:/system.slice/docker-{A}.scope\n0::/system.slice/docker-{A}.scope\n",
                Some(A),
            ),
            ("0::/docker/{A}\n", Some(A)),
            ("0::/system.slice/docker-{A}.scope\n", Some(A)),
            // docker without root, and below an own parent.
            (
                "0::/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{A}.scope\n",
                Some(A),
            ),
            ("0::/custom-parent/{A}\n", Some(A)),
            // systemd as the container's init.
            (
                "1:name=systemd:/docker/{A}/system.slice/nginx.service\n",
                Some(A),
            ),
            ("0::/docker/{A}/init.scope\n", Some(A)),
            // containerd under Kubernetes, both drivers, both versions, all service classes.
            ("1:name=systemd:/kubepods/besteffort/{POD}/{A}\n", Some(A)),
            ("10:cpuset:/kubepods/{POD}/{A}\n", Some(A)),
            (
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-{POD}.slice/cri-containerd-{A}.scope\n",
                Some(A),
            ),
            (
                "0::/kubepods.slice/kubepods-{POD}.slice/cri-containerd-{A}.scope\n",
                Some(A),
            ),
            (
                "11:cpu:/system.slice/containerd.service/kubepods-burstable-{POD}.slice:cri-containerd:{A}\n",
                Some(A),
            ),
            // containerd alone (nerdctl).
            ("0::/default/{A}\n", Some(A)),
            ("0::/system.slice/nerdctl-{A}.scope\n", Some(A)),
            // CRI-O, both drivers, and its monitor.
            (
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-{POD}.slice/crio-{A}.scope\n",
                Some(A),
            ),
            (
                "1:name=systemd:/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-{POD}.slice/crio-{A}.scope/system.slice\n",
                Some(A),
            ),
            ("9:memory:/kubepods/burstable/{POD}/crio-{A}\n", Some(A)),
            (
                "0::/kubepods.slice/kubepods-burstable-{POD}.slice/crio-conmon-{A}.scope\n",
                None,
            ),
            // podman, with and without root, with split cgroups, and its monitor.
            ("0::/machine.slice/libpod-{A}.scope\n", Some(A)),
            ("0::/machine.slice/libpod-{A}.scope/container\n", Some(A)),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope/container\n",
                Some(A),
            ),
            (
                "1:name=systemd:/user.slice/user-1000.slice/session-1.scope\n0::/libpod_parent/libpod-{A}\n",
                Some(A),
            ),
            ("0::/machine.slice/libpod-conmon-{A}.scope\n", None),
            // ECS on EC2 and on Fargate.
            (
                "9:perf_event:/ecs/0123456789abcdef0123456789abcdef/{A}\n",
                Some(A),
            ),
            ("9:perf_event:/ecs/haumeahaumeahaumea/{A}\n", Some(A)),
            (
                "1:blkio:/ecs/c23e5f76c09d438aa1824ca4058bdcab/c23e5f76c09d438aa1824ca4058bdcab-1234567890\n",
                Some("c23e5f76c09d438aa1824ca4058bdcab-1234567890"),
            ),
            // Nested: kind and docker in docker; the innermost counts.
            (
                "0::/docker/{A}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-{POD}.slice/cri-containerd-{B}.scope\n",
                Some(B),
            ),
            ("1:name=systemd:/docker/{A}/docker/{B}\n", Some(B)),
            // Seen from a sibling's private namespace.
            ("0::/../cri-containerd-{A}.scope\n", Some(A)),
            ("0::/../../{POD}/{A}\n", Some(A)),
            // No container.
            ("0::/\n", None),
            ("0::/init.scope\n", None),
            ("0::/user.slice/user-1000.slice/session-2.scope\n", None),
            ("0::/system.slice/nginx.service\n", None),
            (
                "4:memory:/process_api/fb3e5ca8c93da3bb49d7db2a10166ea9\n0::/\n",
                None,
            ),
            ("0::/system.slice/docker-8c1d0f4c7a1b.scope\n", None),
            ("0::/docker/{A}ff\n", None),
            ("0::/kubepods/{POD}\n", None),
            ("", None),
            ("garbage\n::\n0:\n", None),
        ] {
            check(text, expected);
        }
    }

    #[test]
    fn pods_of_cgroups() {
        const UID: &str = "2b1a7d1c-5e35-4c35-8b9c-0d7f7f4a5a11";
        const HASH: &str = "0123456789abcdef0123456789abcdef";
        for (text, expected) in [
            // cgroupfs, v1 and v2; systemd, v1 and v2; every service class.
            (
                "1:name=systemd:/kubepods/besteffort/pod{UID}/{A}\n",
                Some(UID),
            ),
            ("0::/kubepods/pod{UID}/{A}\n", Some(UID)),
            (
                "11:memory:/kubepods.slice/kubepods-{POD}.slice/docker-{A}.scope\n",
                Some(UID),
            ),
            (
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-{POD}.slice/cri-containerd-{A}.scope\n",
                Some(UID),
            ),
            (
                "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-{POD}.slice/crio-{A}.scope/container\n",
                Some(UID),
            ),
            (
                "11:cpu:/system.slice/containerd.service/kubepods-burstable-{POD}.slice:cri-containerd:{A}\n",
                Some(UID),
            ),
            // kind, seen from its host; a static pod; a pod seen from another one's namespace.
            (
                "0::/docker/{B}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-{POD}.slice/cri-containerd-{A}.scope\n",
                Some(UID),
            ),
            (
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{HASH}.slice/crio-{A}.scope\n",
                Some(HASH),
            ),
            (
                "0::/../../kubepods-{POD}.slice/cri-containerd-{A}.scope\n",
                Some(UID),
            ),
            ("0::/system.slice/docker-{A}.scope\n", None),
            ("0::/podman/pod-x/{A}\n", None),
            (
                "0::/kubepods/podXb1a7d1c-5e35-4c35-8b9c-0d7f7f4a5a11/{A}\n",
                None,
            ),
            ("0::/machine.slice/libpod-{A}.scope\n", None),
            ("", None),
        ] {
            let text = text
                .replace("{A}", A)
                .replace("{B}", B)
                .replace("{POD}", POD)
                .replace("{UID}", UID)
                .replace("{HASH}", HASH);
            assert_eq!(pod_uid(&text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn mountinfo_samples() {
        let docker = format!(
            "1 2 0:3 / / rw - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/X\n\
             712 701 8:1 /var/lib/docker/containers/{A}/resolv.conf /etc/resolv.conf rw - ext4 /dev/sda1 rw\n"
        );
        assert_eq!(from_mountinfo(&docker), Some(A));
        let podman = format!(
            "9 8 0:25 /containers/storage/overlay-containers/{B}/userdata/hostname /etc/hostname rw - tmpfs tmpfs rw\n"
        );
        assert_eq!(from_mountinfo(&podman), Some(B));
        let sandbox = format!(
            "9 8 8:1 /var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/{A}/hostname /etc/hostname rw - ext4 x rw\n"
        );
        assert_eq!(from_mountinfo(&sandbox), None);
        let host = format!(
            "40 28 0:49 / /var/lib/docker/overlay2/{A}/merged rw - overlay overlay rw\n\
             41 28 8:1 /var/lib/docker/containers/{A}/mounts/shm /var/lib/docker/containers/{A}/mounts/shm rw - tmpfs shm rw\n"
        );
        assert_eq!(from_mountinfo(&host), None);
        assert_eq!(from_mountinfo("x\n\n1 2 3\n"), None);
    }

    #[test]
    fn a_private_namespace_falls_back_to_the_mounts() {
        let root = tempfile::tempdir().expect("tempdir");
        let dir = root.path().join("9");
        std::fs::create_dir_all(&dir).expect("mkdir");
        std::fs::write(dir.join("cgroup"), "0::/\n").expect("write");
        let proc = ProcFs::new(root.path());
        let container_id = |pid| Place::of(&proc, pid).container_id;
        assert_eq!(container_id(9), None);
        let line =
            format!("5 4 8:1 /docker/containers/{A}/hosts /etc/hosts rw - ext4 /dev/sda1 rw\n");
        std::fs::write(dir.join("mountinfo"), line).expect("write");
        assert_eq!(container_id(9).as_deref(), Some(A));
        assert_eq!(container_id(10), None);
    }
}
