{{- define "redirect.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "redirect.selector" -}}
app.kubernetes.io/name: redirect
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "redirect.labels" -}}
{{ include "redirect.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "redirect.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* The daemon's configuration; .Values.config is laid over it. */}}
{{- define "redirect.config" -}}
{{- $probes := dict "cgroups" .Values.capture.probers -}}
{{- $capture := dict "backend" .Values.capture.backend "bpffs" "/sys/fs/bpf" "mountBpffs" false "probes" $probes -}}
{{- $host := dict "proc" "/proc" "cgroup" "/host/cgroup" -}}
{{- $kubernetes := dict "workloads" .Values.workloadsFromKubernetes -}}
{{- $agent := dict "socket" "/run/redirect/agent.sock" "host" $host "kubernetes" $kubernetes -}}
{{- $identity := dict "source" .Values.identity.source "dir" "/etc/redirect/identity" -}}
{{- $admin := dict "metrics" (printf "[::]:%v" .Values.metrics.port) "readiness" (printf "127.0.0.1:%v" .Values.readiness.port) -}}
{{- $config := dict
    "trustDomain" .Values.trustDomain
    "clusterId" .Values.clusterId
    "network" .Values.network
    "stateDir" "/run/redirect/state"
    "capture" $capture
    "proxy" (dict "drain" (printf "%vs" .Values.drainSeconds))
    "identity" $identity
    "admin" $admin
    "agent" $agent -}}
{{- if not .Values.workloadsFromKubernetes -}}
{{- $_ := set $config "workloads" "/etc/redirect/workloads/workloads.yaml" -}}
{{- end -}}
{{- toYaml (mergeOverwrite $config (deepCopy .Values.config)) -}}
{{- end -}}
