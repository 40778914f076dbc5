{{/* What the trainer runs with, whatever starts it */}}
{{- define "plaudit.trainerArguments" -}}
- --resume
- --address=0.0.0.0:50060
- --metrics-address=0.0.0.0:9100
{{- include "plaudit.transport" . | nindent 0 }}
{{- include "plaudit.tokensFile" . | nindent 0 }}
{{- if .Values.gpu.enabled }}
- --set=model.device=cuda
- --set=critic.device=cuda
{{- end }}
{{- with .Values.trainer.args }}
{{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}

{{/* What its Job makes of an end */}}
{{- define "plaudit.failures" -}}
rules:
  - action: Ignore # a node was drained, a pod preempted
    onPodConditions: [{type: DisruptionTarget, status: "True"}]
  - action: Ignore # stopped
    onExitCodes: {containerName: plaudit, operator: In, values: [75]}
  - action: FailJob # 64: the configuration or the data is wrong, and will be next time
    onExitCodes: {containerName: plaudit, operator: In, values: [64]}
{{- end }}

{{/* Its pod: that of a Job, of a JobSet with its rank, or of a TrainJob, which says itself what it runs */}}
{{- define "plaudit.trainerPod" -}}
metadata:
  {{- include "plaudit.podMetadata" (list . "trainer") | nindent 2 }}
spec:
  {{- include "plaudit.pod" . | nindent 2 }}
  {{- include "plaudit.gpuPod" . | nindent 2 }}
  restartPolicy: Never
  serviceAccountName: plaudit-trainer
  automountServiceAccountToken: true # it asks where the policy's pods are
  priorityClassName: plaudit-training
  terminationGracePeriodSeconds: 600 # the step under way, and its checkpoint
  {{- include "plaudit.beforehand" . | nindent 2 }}
  containers:
    - name: {{ ternary "node" "plaudit" (eq .Values.trainer.kind "TrainJob") }}
      image: {{ include "plaudit.image" . }}
      {{- include "plaudit.container" . | nindent 6 }}
      {{- if ne .Values.trainer.kind "TrainJob" }}
      command: [python, -m, trainer, ppo, /config/ppo.toml]
      args:
        {{- include "plaudit.trainerArguments" . | nindent 8 }}
      {{- end }}
      env:
        {{- include "plaudit.env" . | nindent 8 }}
        {{- include "plaudit.plaintext" . | nindent 8 }}
        {{- include "plaudit.trust" . | nindent 8 }}
        {{- include "plaudit.token" . | nindent 8 }}
        {{- include "plaudit.ownToken" . | nindent 8 }}
        {{- if eq .Values.trainer.kind "JobSet" }}
        - name: RANK
          valueFrom:
            fieldRef: {fieldPath: "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
        - {name: WORLD_SIZE, value: "1"}
        - {name: MASTER_ADDR, value: plaudit-trainer-rank-0-0.plaudit-ranks}
        - {name: MASTER_PORT, value: "29500"}
        {{- end }}
      ports:
        - {name: grpc, containerPort: 50060}
        - {name: metrics, containerPort: 9100}
        {{- include "plaudit.healthPort" . | nindent 8 }}
        {{- if eq .Values.trainer.kind "JobSet" }}
        - {name: rendezvous, containerPort: 29500}
        {{- end }}
      resources:
        {{- include "plaudit.resources" (list . .Values.trainer.resources) | nindent 8 }}
      readinessProbe:
        grpc: {port: {{ ternary 8081 50060 .Values.tls.enabled }}, service: plaudit.v1.TrainerService}
        timeoutSeconds: 5
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        {{- include "plaudit.tlsMount" . | nindent 8 }}
        {{- include "plaudit.tokensMount" . | nindent 8 }}
        {{- include "plaudit.tokenMount" . | nindent 8 }}
        {{- include "plaudit.ownTokenMount" . | nindent 8 }}
        - {name: models, mountPath: /models, readOnly: true}
        - {name: config, mountPath: /config, readOnly: true}
        - {name: runs, mountPath: /runs}
        {{- if .Values.gpu.enabled }}
        - {name: shm, mountPath: /dev/shm}
        {{- end }}
  volumes:
    - name: tmp
      emptyDir: {sizeLimit: 1Gi}
    {{- include "plaudit.tlsVolume" . | nindent 4 }}
    {{- include "plaudit.tokensVolume" . | nindent 4 }}
    {{- include "plaudit.tokenVolume" . | nindent 4 }}
    {{- include "plaudit.ownTokenVolume" (list . "trainer") | nindent 4 }}
    {{- include "plaudit.modelsVolume" . | nindent 4 }}
    - name: config
      configMap: {name: plaudit-ppo}
    - name: runs
      persistentVolumeClaim: {claimName: plaudit-runs}
    {{- include "plaudit.sharedMemoryVolume" . | nindent 4 }}
{{- end }}
