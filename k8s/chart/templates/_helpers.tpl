{{- define "plaudit.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "plaudit.gatewayImage" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
{{- with .Values.gateway.image -}}
{{ .repository | default (print $.Values.image.repository .suffix) }}:{{ .tag | default $tag }}
{{- end }}
{{- end }}

{{/* (list root component): what selects its pods */}}
{{- define "plaudit.selector" -}}
app.kubernetes.io/name: plaudit
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* (list root component) */}}
{{- define "plaudit.labels" -}}
{{- $root := index . 0 -}}
{{ include "plaudit.selector" . }}
app.kubernetes.io/instance: plaudit
app.kubernetes.io/version: {{ $root.Chart.AppVersion }}
app.kubernetes.io/part-of: plaudit
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- end }}

{{/* (list root component name) */}}
{{- define "plaudit.metadata" -}}
name: {{ index . 2 }}
namespace: {{ (index . 0).Release.Namespace }}
labels:
  {{- include "plaudit.labels" . | nindent 2 }}
{{- end }}

{{/* (list root component): the head of a pod template; a change of configuration rolls the pods */}}
{{- define "plaudit.podMetadata" -}}
{{- $root := index . 0 -}}
labels:
  {{- include "plaudit.labels" . | nindent 2 }}
annotations:
  checksum/config: {{ include (print $root.Template.BasePath "/config.yaml") $root | sha256sum }}
{{- end }}

{{/* Of every pod: Pod Security "restricted", replicas on different nodes */}}
{{- define "plaudit.pod" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {app.kubernetes.io/name: plaudit}
    matchLabelKeys: [app.kubernetes.io/component, pod-template-hash]
{{- end }}

{{- define "plaudit.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Of every container */}}
{{- define "plaudit.container" -}}
imagePullPolicy: {{ .Values.image.pullPolicy }}
terminationMessagePolicy: FallbackToLogsOnError
envFrom:
  - configMapRef: {name: plaudit-environment}
securityContext:
  {{- include "plaudit.containerSecurity" . | nindent 2 }}
{{- end }}

{{- define "plaudit.env" -}}
- name: OMP_NUM_THREADS
  valueFrom:
    resourceFieldRef: {resource: limits.cpu}
{{- end }}

{{- define "plaudit.token" -}}
{{- with .Values.token.secret }}
- {name: PLAUDIT_TOKEN_FILE, value: /token/token}
{{- end }}
{{- end }}

{{- define "plaudit.tokenMount" -}}
{{- if .Values.token.secret }}
- {name: token, mountPath: /token, readOnly: true}
{{- end }}
{{- end }}

{{- define "plaudit.tokenVolume" -}}
{{- with .Values.token.secret }}
- name: token
  secret: {secretName: {{ . }}, defaultMode: 288} # 0440
{{- end }}
{{- end }}

{{/* Of a caller: its own token, beside the file of all */}}
{{- define "plaudit.ownToken" -}}
{{- if .Values.tokens.secret }}
- {name: PLAUDIT_TOKEN_FILE, value: /token/token}
{{- end }}
{{- end }}

{{- define "plaudit.ownTokenMount" -}}
{{- if .Values.tokens.secret }}
- {name: token, mountPath: /token, readOnly: true}
{{- end }}
{{- end }}

{{/* (list root caller) */}}
{{- define "plaudit.ownTokenVolume" -}}
{{- if (index . 0).Values.tokens.secret }}
- name: token
  secret:
    secretName: {{ (index . 0).Values.tokens.callers }}
    defaultMode: 288 # 0440
    items: [{key: {{ index . 1 }}, path: token}]
{{- end }}
{{- end }}

{{- define "plaudit.tokensFile" -}}
{{- if .Values.tokens.secret }}
- --tokens=/tokens/tokens.toml
{{- end }}
{{- end }}

{{- define "plaudit.tokensMount" -}}
{{- if .Values.tokens.secret }}
- {name: tokens, mountPath: /tokens, readOnly: true}
{{- end }}
{{- end }}

{{- define "plaudit.tokensVolume" -}}
{{- with .Values.tokens.secret }}
- name: tokens
  secret: {secretName: {{ . }}, defaultMode: 288} # 0440
{{- end }}
{{- end }}

{{/* Of who calls services */}}
{{- define "plaudit.trust" -}}
{{- if .Values.tls.enabled }}
- {name: PLAUDIT_TLS_CA, value: /tls/ca.crt}
{{- end }}
{{- end }}

{{- define "plaudit.plaintext" -}}
{{- if not .Values.tls.enabled }}
- {name: PLAUDIT_INSECURE, value: "1"} # a token goes from pod to pod in plaintext
{{- end }}
{{- end }}

{{- define "plaudit.transport" -}}
{{- if .Values.tls.enabled }}
- --tls-cert=/tls/tls.crt
- --tls-key=/tls/tls.key
- --health-address=0.0.0.0:8081
{{- else }}
- --insecure
{{- end }}
{{- end }}

{{- define "plaudit.healthPort" -}}
{{- if .Values.tls.enabled }}
- {name: health, containerPort: 8081}
{{- end }}
{{- end }}

{{- define "plaudit.tlsMount" -}}
{{- if .Values.tls.enabled }}
- {name: tls, mountPath: /tls, readOnly: true}
{{- end }}
{{- end }}

{{- define "plaudit.tlsVolume" -}}
{{- if .Values.tls.enabled }}
- name: tls
  secret: {secretName: plaudit-tls, defaultMode: 288} # 0440
{{- end }}
{{- end }}

{{/* (list root grpc|http) */}}
{{- define "plaudit.protocol" -}}
{{- if (index . 0).Values.tls.enabled }}https{{ else }}{{ index . 1 }}{{ end }}
{{- end }}

{{- define "plaudit.modelsVolume" -}}
- name: models
{{- if .Values.models.fetch.url }}
  ephemeral:
    volumeClaimTemplate:
      spec:
        accessModes: [ReadWriteOnce]
        resources: {requests: {storage: {{ .Values.models.storage }}}}
{{- else if .Values.models.image }}
  image: {reference: {{ .Values.models.image | quote }}, pullPolicy: {{ .Values.image.pullPolicy }}}
{{- else }}
  persistentVolumeClaim: {claimName: plaudit-models, readOnly: true}
{{- end }}
{{- end }}

{{/* (list root resources): with a GPU, if there is to be one */}}
{{- define "plaudit.resources" -}}
{{- $root := index . 0 -}}
{{- $resources := deepCopy (index . 1) -}}
{{- if $root.Values.gpu.enabled }}
{{- $resources = mergeOverwrite $resources (dict
      "requests" (dict "memory" $root.Values.gpu.memory)
      "limits" (dict "memory" $root.Values.gpu.memory "nvidia.com/gpu" 1)) }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{- define "plaudit.gpuPod" -}}
{{- if .Values.gpu.enabled }}
tolerations:
  - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
{{- end }}
{{- end }}

{{- define "plaudit.sharedMemoryVolume" -}}
{{- if .Values.gpu.enabled }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .Values.gpu.sharedMemory }}}
{{- end }}
{{- end }}

{{/* Before a pod that reads models starts: it fetches them, or waits until the quickstart's are there */}}
{{- define "plaudit.beforehand" -}}
{{- if .Values.models.fetch.url }}
{{- $component := .Files.Get "files/fetched-models.yaml" | fromYaml }}
{{- $container := first $component.spec.template.spec.initContainers }}
{{- $_ := set $container "image" .Values.models.fetch.image }}
{{- $_ := set $container "imagePullPolicy" .Values.image.pullPolicy }}
{{- $_ := set $container "args" (list .Values.models.fetch.url .Values.models.fetch.sha256) }}
initContainers:
  {{- list $container | toYaml | nindent 2 }}
{{- else if .Values.quickstart.enabled }}
initContainers:
  - name: wait-for-models
    image: {{ include "plaudit.image" . }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    terminationMessagePolicy: FallbackToLogsOnError
    command: [sh, -c, "trap 'exit 143' TERM; until [ -e /models/reward ]; do sleep 2; done"]
    resources:
      requests: {cpu: 10m, memory: 16Mi}
      limits: {cpu: 100m, memory: 16Mi}
    securityContext:
      {{- include "plaudit.containerSecurity" . | nindent 6 }}
    volumeMounts:
      - {name: models, mountPath: /models, readOnly: true}
{{- end }}
{{- end }}

{{/* (list root path): the objects of a file that kustomize applies, too, with our labels and image */}}
{{- define "plaudit.file" -}}
{{- $root := index . 0 -}}
{{- $text := $root.Files.Get (index . 1) | required (print (index . 1) " is missing") -}}
{{- $text = $text | replace "plaudit:0.1.0" (include "plaudit.image" $root) -}}
{{- $text = $text | replace "managed-by: kustomize" (print "managed-by: " $root.Release.Service) -}}
{{- range splitList "\n---\n" $text }}
{{- $object := fromYaml . }}
{{- $component := get $object.metadata.labels "app.kubernetes.io/component" }}
{{- $labels := include "plaudit.labels" (list $root $component) | fromYaml }}
{{- $_ := set $object.metadata "labels" (merge $object.metadata.labels $labels) }}
{{- if ne $object.kind "PriorityClass" }}
{{- $_ := set $object.metadata "namespace" $root.Release.Namespace }}
{{- end }}
{{- range $object.subjects }}
{{- $_ := set . "namespace" $root.Release.Namespace }}
{{- end }}
---
{{ toYaml $object }}
{{- end }}
{{- end }}
