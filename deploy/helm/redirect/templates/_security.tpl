{{/* What the daemon may do. Root, since pods' cgroups and namespaces are root's; not privileged. */}}
{{- define "redirect.security" -}}
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsUser: 0
runAsGroup: 0
runAsNonRoot: false
capabilities:
  drop: [ALL]
  add:
    # Load and attach programs, read their maps.
    - BPF
    - PERFMON
    # Interfaces, routes, rules, sysctls of pods; IP_TRANSPARENT.
    - NET_ADMIN
    # xtables reads its rules by a raw socket.
    - NET_RAW
    # Ports below 1024 on behalf of pods' clients.
    - NET_BIND_SERVICE
    # Enter network namespaces, mount a procfs for their sysctls.
    - SYS_ADMIN
    # Look at other processes' namespaces.
    - SYS_PTRACE
    # Files of pods and runtimes that belong to others.
    - DAC_OVERRIDE
{{- if eq .Values.appArmor "field" }}
appArmorProfile: { type: Unconfined }
{{- end }}
{{- with .Values.seccompProfile }}
seccompProfile: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.seLinuxOptions }}
seLinuxOptions: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "redirect.mounts" -}}
- { name: config, mountPath: /etc/redirect/config, readOnly: true }
- { name: identity, mountPath: /etc/redirect/identity, readOnly: true }
{{- if not .Values.workloadsFromKubernetes }}
- { name: workloads, mountPath: /etc/redirect/workloads, readOnly: true }
{{- end }}
- { name: run, mountPath: /run/redirect }
- { name: bpffs, mountPath: /sys/fs/bpf }
- { name: cgroup, mountPath: /host/cgroup }
# Namespaces are mounts, which come and go.
- { name: netns, mountPath: /run/netns, mountPropagation: HostToContainer }
{{- end -}}

{{/* The installer writes two directories of the node, and nothing else. */}}
{{- define "redirect.cniSecurity" -}}
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsUser: 0
runAsGroup: 0
runAsNonRoot: false
capabilities:
  drop: [ALL]
  add: [DAC_OVERRIDE]
{{- with .Values.seLinuxOptions }}
seLinuxOptions: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "redirect.cniMounts" -}}
- { name: cni-bin, mountPath: /host/cni/bin }
- { name: cni-net, mountPath: /host/cni/net.d }
{{- end -}}
